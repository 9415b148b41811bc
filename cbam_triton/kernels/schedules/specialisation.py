"""What no kernel is specialised on: a new size, stride or lag compiles nothing."""

UNSPECIALISED = [
    *(f"{tensor}_stride_{axis}" for tensor in ("x", "y", "dy", "d", "dx") for axis in "ncp"),
    *("N", "C", "H", "W", "PLANES", "R", "BLOCKS", "SHARES", "COUNT", "LAG"),
]
