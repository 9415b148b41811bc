"""Live models: find the CBAMs in them and run these by the kernels, replace them by ours, or insert new ones.

The public surface and the commands import it; it imports the modules and what lies below them.
"""

from .convert import ConversionReport, convert_cbam, restore_cbam
from .insert import insert_cbam, new_parameters, remove_cbam
from .replace import replace_cbam

__all__ = [
    "ConversionReport",
    "convert_cbam",
    "insert_cbam",
    "new_parameters",
    "remove_cbam",
    "replace_cbam",
    "restore_cbam",
]
