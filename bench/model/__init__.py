"""Time without a GPU: the commands over `cbam_triton.prediction`.

`devices` reads their `--device`, `predict` compiles what would be launched there and prints its times.
"""
