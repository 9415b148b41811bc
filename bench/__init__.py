"""Benchmarks, run from a clone: `python -m bench --help`."""
