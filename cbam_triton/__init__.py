"""CBAM, the convolutional block attention module (arXiv 1807.06521), as fused Triton kernels for PyTorch."""

from . import functional
from .checkpoints.convert import convert_state_dict
from .dispatch import AttentionMaps
from .models.convert import convert_cbam, restore_cbam
from .models.insert import insert_cbam
from .nn import CBAM, ChannelAttention, SpatialAttention
from .settings import settings

__version__ = "0.1.0"

__all__ = [
    "CBAM",
    "AttentionMaps",
    "ChannelAttention",
    "SpatialAttention",
    "convert_cbam",
    "convert_state_dict",
    "functional",
    "insert_cbam",
    "restore_cbam",
    "settings",
]
