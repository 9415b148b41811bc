"""Weights of published CBAMs: which form a state dict is of, and its conversion to the layer's own keys.

The modules and whatever lies above them may import it; it imports nothing of the package but itself
and `spec`.
"""

from .convert import Converted, convert_state_dict
from .formats import find_cbam

__all__ = ["Converted", "convert_state_dict", "find_cbam"]
