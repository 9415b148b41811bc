"""Time without a GPU: closed formulas over what the compiler made and what a GPU's data sheet says.

`code` reads a compiled kernel, `devices` a GPU's facts, `predict` makes a time of both; `roofline` draws it.
"""
