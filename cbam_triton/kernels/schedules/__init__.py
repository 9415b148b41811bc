"""Kernels: the order in which programs take the tiles of the stages.

The launchers import them; they import the stages and nothing else of the package.
"""
