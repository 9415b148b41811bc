"""Device functions: what one program computes of one tile, and the arithmetic that they share.

Schedules import them; they import each other and nothing else of the package.
"""
