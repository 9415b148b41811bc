"""Variants of the layer: which pools there are, how the two gates follow each other, what function a gate is."""

from typing import Any, Literal, NamedTuple, get_args

from .values import check_bool, check_word, described

ChannelPool = Literal["avg", "max", "lp", "lse"]
SpatialPool = Literal["mean", "max"]
Arrangement = Literal["channel_first", "spatial_first", "parallel"]
Gate = Literal["sigmoid", "hard_sigmoid"]


class Variant(NamedTuple):
    """What a layer computes besides its parameters.

    `spatial_pools` is in the order of the convolution's input channels. With `light` there are both pools of both
    kinds, and the half of their sum is what the MLP and the convolution get.
    """

    channel_pools: tuple[ChannelPool, ...] = ("avg", "max")
    spatial_pools: tuple[SpatialPool, ...] = ("mean", "max")
    arrangement: Arrangement = "channel_first"
    gate: Gate = "sigmoid"
    light: bool = False


DEFAULT = Variant()


def passes_of(variant: Variant) -> int:
    """How often the second layer of the MLP counts: once a pool, or once."""
    return 1 if variant.light else len(variant.channel_pools)


def maps_of(variant: Variant) -> int:
    """Input channels of the convolution."""
    return 1 if variant.light else len(variant.spatial_pools)


def encoded(variant: Variant) -> str:
    """The variant as an operator gets it; `decoded` is its inverse."""
    if variant == DEFAULT:
        return ""
    pools = "+".join(variant.channel_pools), "+".join(variant.spatial_pools)
    return "/".join((*pools, variant.arrangement, variant.gate, "light" if variant.light else ""))


def decoded(code: str) -> Variant:
    """The variant of an `encoded` one."""
    if not code:
        return DEFAULT
    channel, spatial, arrangement, gate, light = code.split("/")
    words: list[Any] = [tuple(channel.split("+")), tuple(spatial.split("+")), arrangement, gate]
    return Variant._make([*words, light == "light"])


def checked_variant(
    channel_pools: Any = DEFAULT.channel_pools,
    spatial_pools: Any = DEFAULT.spatial_pools,
    arrangement: Any = DEFAULT.arrangement,
    gate: Any = DEFAULT.gate,
    light: Any = False,
) -> Variant:
    """The variant of these options.

    Raises: ValueError for an unknown or repeated name, for no pool, and for `light` without both pools of both kinds;
    TypeError for pools that are no tuple or list, for another option that is no string and a `light` that is no bool.
    """
    # Identity: the equality of an array is no single answer, and the functions ask at every call.
    pools = channel_pools is DEFAULT.channel_pools and spatial_pools is DEFAULT.spatial_pools
    if pools and arrangement is DEFAULT.arrangement and gate is DEFAULT.gate and light is False:
        return DEFAULT
    check_bool("light", light)
    check_word("arrangement", arrangement, get_args(Arrangement))
    check_word("gate", gate, get_args(Gate))
    found = Variant(
        _pools("channel_pools", channel_pools, get_args(ChannelPool)),
        _pools("spatial_pools", spatial_pools, get_args(SpatialPool)),
        arrangement,
        gate,
        light,
    )
    if light and (set(found.channel_pools) != {"avg", "max"} or set(found.spatial_pools) != {"mean", "max"}):
        raise ValueError(
            "light halves the sum of both pools, so it needs channel_pools ('avg', 'max') and spatial_pools ('mean', "
            f"'max'), got {found.channel_pools} and {found.spatial_pools}: leave the pools as they are, or light out"
        )
    return found


def _pools(name: str, pools: Any, known: tuple[str, ...]) -> Any:
    wanted = f"{name} must be a tuple of some of {', '.join(known)}, each once, got"
    if not isinstance(pools, (tuple, list)) or not all(isinstance(pool, str) for pool in pools):
        raise TypeError(f"{wanted} {described(pools)}: write for instance ({known[0]!r}, {known[1]!r})")
    if not pools or len(set(pools)) < len(pools) or not set(pools) <= set(known):
        raise ValueError(f"{wanted} {tuple(pools)!r}: choose those")
    return tuple(pools)
