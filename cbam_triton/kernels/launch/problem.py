"""What a launch configuration depends on."""

from typing import NamedTuple


class Problem(NamedTuple):
    """One call, as far as its launches depend on it."""

    N: int
    C: int
    P: int
    R: int  # 0 without channel attention
    K: int  # 0 without spatial attention
    itemsize: int
    vec: int  # elements of the widest access
    channels_last: bool
    backward: bool = False
    dims: int = 2  # axes of pixels
    spatial_first: bool = False
    slots: int = 2  # places for the descriptors of a channel

    @property
    def tap_rows(self) -> int:
        """Rows of the convolution's taps."""
        return self.K ** (self.dims - 1)
