"""What the layer is, in plain PyTorch: the reference composition, its variants and norms, and the checks of arguments.

Every storey above may import it; it imports nothing of the package but itself.
"""
