"""What a compiled launch needs of a GPU, and the time predicted from it: closed formulas, nothing fitted to times.

`code` reads a compiled kernel, `occupancy` says how many programs an SM holds, `devices` has facts of GPUs, `launches`
says what a launch has to do, `predict` makes a time of it. `tuning.explain` and `bench/` import it.
"""
