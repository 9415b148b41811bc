"""Triton kernels: stages, which compute tiles; schedules, which order them; launch, which runs them.

The operators import launch; a stage or a schedule is imported by nothing outside this folder.
"""
