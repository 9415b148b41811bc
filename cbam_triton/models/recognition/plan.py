"""What is found out about a module: the plan of its CBAM, or why it has none."""

from typing import NamedTuple

from ...spec.variant import Variant

Path = tuple[str, ...]


class Plan(NamedTuple):
    """Where in a module the layers of its CBAM are, which variant it is, and for which maps that was proven.

    `axes` are the numbers of axes that x may have; `channels` is the C that x must have, None for any.
    """

    mlp: tuple[Path, ...]
    conv: Path | None
    norm: Path | None
    add_input: bool
    variant: Variant
    axes: tuple[int, ...] = ()
    channels: int | None = None

    @property
    def is_squeeze(self) -> bool:
        """Whether this is no more than a squeeze-and-excitation layer."""
        return self.conv is None and "max" not in self.variant.channel_pools


class Unlike(Exception):
    """The module is not a CBAM that can be converted; the message says why.

    `resembles` tells whether it has so much of a CBAM that its user is to be told, `squeezes` whether so much of a
    squeeze-and-excitation layer.
    """

    resembles = False
    squeezes = False


class UnknownStep(Unlike):
    """It uses a function that a CBAM has not."""
