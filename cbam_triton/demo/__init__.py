"""The command: the check on a photograph, its report and pictures, and the digits that it trains on.

Nothing imports it but __main__; it may import everything.
"""
