"""Published forms, how two results are compared, and how calls are timed: for the check, the benchmarks and the tests.

The commands, bench/ and tests/ import it; it imports nothing of the package but itself.
"""
