"""CBAM put into a network where the paper does: at the end of every residual block, before the addition.

The block's own children stay where they are, under their names. It gets one more, `cbam`, and a forward that calls them
in the order in which its own did.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..nn import CBAM, Layers, SpatialNorm
from ..spec.variant import DEFAULT, ChannelPool, Gate, SpatialPool, passes_of
from .inserted import holders, put_at_end, put_into_block, put_into_chain, relu_follows, take_out
from .layer_ends import last_convolution
from .residual_blocks import Block, adds, described, find_blocks
from .unet_blocks import find_decoder_blocks, find_encoder_blocks
from .vgg_stages import StageEnd, find_stage_ends

# Either starts a gate at 0.9997. The changes of all blocks add up: at sigmoid(6), 0.9975, an untrained ResNet-18 would
# change by 2.6 percent instead of 0.4. The price is the slope, 0.0003 instead of the 1/4 of a gate at its middle. The
# hard gate's is 1/6, but it ends at 3.
_OPEN = {"sigmoid": 8.0, "hard_sigmoid": 2.998}


def insert_cbam(
    model: nn.Module,
    *,
    reduction: float = 16,
    kernel_size: int = 7,
    mlp_bias: bool = True,
    conv_bias: bool = False,
    spatial_norm: SpatialNorm = "batch",
    channel_pools: tuple[ChannelPool, ...] = DEFAULT.channel_pools,
    spatial_pools: tuple[SpatialPool, ...] = DEFAULT.spatial_pools,
    arrangement: Layers = "channel_first",
    gate: Gate = DEFAULT.gate,
    light: bool = False,
    gentle: bool = False,
    decoder: bool = False,
    where: Callable[[str], bool] | None = None,
) -> tuple[str, ...]:
    """Puts a `CBAM` of these options into every block of `model`, in place, and returns the names of these blocks.

    A block is a residual block: its forward calls layers one after another, adds a shortcut, and may end with an
    activation. The layers end with a norm, a convolution, or an activation of one. An inverted residual block may lack
    the shortcut. The layer comes after the last of these layers, before a drop path and the addition, and it computes
    the addition and a ReLU after it too. Blocks are known by what their code does, so that copies are found as well as
    the networks of torchvision and timm. In a network without residual blocks, the layer comes into each stage of a
    VGG, before the pooling; or, in a U-Net, at the end of each stage of the encoder. With `decoder`, every block of a
    U-Net's decoder gets a layer at its end too.

    The layer is the block's child `cbam`; no other name of the state dict changes. It has the dtype, device and number
    of axes of the block's last convolution, and the block's training mode. `where` gets a block's name and says whether
    the block gets a layer. `gentle` begins with gates of 0.9997 for any x, so that a pretrained network computes nearly
    what it did; such gates learn slowly at first. All other options are those of `CBAM`. A warning names the modules
    that may be residual blocks and got no layer, since their code could not be read.
    Raises: ValueError for a model without blocks, for a residual block that computes something else, for `gentle` where
    a gate has no bias, and for what `CBAM` refuses; TypeError for anything but a module, and for a `where` that is no
    function. The model then is as it was.
    Source: arXiv 1807.06521, figure 3.

        model = torchvision.models.resnet18()
        names = insert_cbam(model)  # ("layer1.0", "layer1.1", ...)
    """
    options: dict[str, Any] = {
        "reduction": reduction, "kernel_size": kernel_size, "mlp_bias": mlp_bias, "conv_bias": conv_bias,
        "spatial_norm": spatial_norm, "channel_pools": channel_pools, "spatial_pools": spatial_pools,
        "arrangement": arrangement, "gate": gate, "light": light,
    }  # fmt: skip
    places = _find(model, _checked(model, where), decoder)
    if not (places.blocks or places.ends or places.stages):
        raise ValueError(_nothing_found(model, places, where is not None))
    # All layers are made before the first is put in, so that an error leaves the model alone.
    puts = list(_puts(model, places, partial(_layer, options, gentle)))
    before = {name for name, _ in holders(model)}
    for put in puts:
        put()
    if places.passed_over:
        warnings.warn(
            f"no CBAM was put into {_listed(places.passed_over)}: call CBAM in their forward where they are residual "
            "blocks, or leave them out with where=lambda name: ...",
            stacklevel=2,
        )
    return tuple(name for name, _ in holders(model) if name not in before)


def remove_cbam(model: nn.Module) -> tuple[str, ...]:
    """Takes every layer out again that `insert_cbam` put into `model`, in place, and returns the names of the blocks.

    Modules, classes, forwards and names of the state dict are what they were before the insertion. A network that
    never got a layer stays as it is, and the tuple is empty. A layer that the network came with is not touched.

    Raises: TypeError for anything but a module; ValueError where a block is not any more what the insertion made of it
    (another child `cbam`, a forward on the instance, a class that a wrapper changed); the model then is as it was.

        names = insert_cbam(model)
        assert remove_cbam(model) == names
    """
    _check_model(model)
    return take_out(model)


def new_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that `insert_cbam` added to `model`, by their names in `model.named_parameters()`.

    For a learning rate of their own, or to train nothing else. Wrappers such as `DistributedDataParallel` may lie
    around the model; names are theirs then.

    Raises: TypeError for anything but a module.

        new = new_parameters(model)
        old = [parameter for name, parameter in model.named_parameters() if name not in new]
        optimizer = torch.optim.SGD([{"params": old}, {"params": [*new.values()], "lr": 0.1}], lr=0.001)
    """
    _check_model(model)
    prefixes = tuple(f"{name}.cbam." if name else "cbam." for name, _ in holders(model))
    return {name: parameter for name, parameter in model.named_parameters() if name.startswith(prefixes)}


def _checked(model: Any, where: Callable[[str], bool] | None) -> Callable[[str], bool]:
    _check_model(model)
    if where is not None and not callable(where):
        raise TypeError(f"where must be a function of a block's name, got {where!r}: pass lambda name: ...")
    return (lambda name: True) if where is None else where


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}: pass the network itself")


class _Places(NamedTuple):
    """What gets a layer: residual blocks, or VGG stages, or stages of a U-Net, whose decoder may come on top."""

    blocks: dict[str, Block]
    ends: list[StageEnd]
    stages: dict[str, int]
    unread: list[str]  # what could not be read, in words
    passed_over: list[str]  # those of them that add something, and so may be residual blocks


def _find(model: nn.Module, allowed: Callable[[str], bool], decoder: bool) -> _Places:
    blocks = find_blocks(model, allowed)
    ends = [] if blocks.found else find_stage_ends(model, allowed)
    decoders = find_decoder_blocks(model, allowed)
    stages = {} if blocks.found or ends or not decoders else find_encoder_blocks(model, decoders, allowed)
    if decoder:
        stages |= {name: width for name, width in decoders.items() if not _overlap(name, blocks.found)}
    taken = [name for name, _ in holders(model)]
    named = [*(end.name for end in ends), *stages]
    doubled = [other for other in taken for name in named if _overlap(name, [other]) or _overlap(other, [name])]
    if doubled or (taken and not (blocks.found or named)):
        name = (doubled or taken)[0]
        raise ValueError(
            f"{described(name, model.get_submodule(name))} has a layer of insert_cbam already, expected none: take it "
            "out with remove_cbam, or leave it out with where=lambda name: ..."
        )
    others = {name: words for name, words in blocks.unread.items() if name not in decoders}
    adding = [words for name, words in others.items() if adds(model.get_submodule(name))]
    return _Places(blocks.found, ends, stages, list(blocks.unread.values()), adding)


def _puts(model: nn.Module, places: _Places, make: Callable[..., CBAM]) -> Iterator[Callable[[], None]]:
    """Makes the layers, and yields for each what puts it in."""
    for name, block in places.blocks.items():
        module = model.get_submodule(name)
        activation = "relu" if relu_follows(module, block) else None
        layer = make(block.width, module, last_convolution(module), activation)
        yield partial(put_into_block, module, block, layer)
    for end in places.ends:
        layer = make(end.convolution.out_channels, end.chain, end.convolution)
        yield partial(put_into_chain, end.chain, end.key, layer, end.before)
    for name, width in places.stages.items():
        module = model.get_submodule(name)
        yield partial(put_at_end, module, make(width, module, last_convolution(module)))


def _overlap(name: str, others: Iterable[str]) -> bool:
    """Whether one of the others is this module, or in it."""
    return any(f"{other}.".startswith(f"{name}." if name else "") for other in others)


def _nothing_found(model: nn.Module, places: _Places, chosen: bool) -> str:
    why = f"; of its modules, {_listed(places.unread)}" if places.unread else ""
    return (
        f"{type(model).__name__} has no residual block{' that can be read' if why else ''} and no VGG stage"
        f"{', that `where` allows' if chosen else ''}: expected modules that add a shortcut to layers ending in a "
        f"norm, or chains of layers with poolings{why}: call CBAM in your own forward instead"
    )


def _listed(words: list[str]) -> str:
    return "; ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")


def _layer(
    options: dict[str, Any], gentle: bool, channels: int, block: nn.Module, like: Any, activation: Any = None
) -> CBAM:
    weight = like.weight
    made: dict[str, Any] = {"dims": weight.ndim - 2, "device": weight.device, "dtype": weight.dtype}
    layer = CBAM(channels, **options, activation=activation, **made)
    if gentle:
        _open(layer)
    return layer.train(block.training)


def _open(layer: CBAM) -> None:
    """Set both gates to constants near one: their last weights zero, their last biases large."""
    channel, spatial = layer.channel, layer.spatial
    if channel is not None:
        last = channel.fc1 if channel.fc2 is None else channel.fc2
        _constant(last.weight, 0.0, "mlp_bias=True")
        _constant(last.bias, _OPEN[channel.variant.gate] / passes_of(channel.variant), "mlp_bias=True")
    if spatial is not None:
        last = spatial.conv if spatial.norm is None else spatial.norm
        _constant(last.weight, 0.0, 'spatial_norm="batch" or conv_bias=True')
        _constant(last.bias, _OPEN[spatial.variant.gate], 'spatial_norm="batch" or conv_bias=True')


def _constant(parameter: Tensor | None, value: float, option: str) -> None:
    if parameter is None:
        raise ValueError(f"gentle needs a bias on each gate, got a gate without: insert with {option}")
    nn.init.constant_(parameter, value)
