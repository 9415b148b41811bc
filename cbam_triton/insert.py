"""CBAM put into a network where the paper does: at the end of every residual block, before the addition.

The block's own children stay where they are, under their names. It gets one more, `cbam`, and a forward that calls them
in the order in which its own did.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .blocks import RELU, Block, find_blocks, find_stage_ends, last_convolution, norm_width, run
from .nn import CBAM, Layers, SpatialNorm
from .variant import DEFAULT, ChannelPool, Gate, SpatialPool, passes_of

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
    where: Callable[[str], bool] | None = None,
) -> tuple[str, ...]:
    """Put a `CBAM` of these options into every block of `model`, in place, and return the names of these blocks.

    A block is a module whose forward is a chain of layers that ends in a norm, plus a shortcut, then an activation or
    none. So are the blocks of ResNet, ResNeXt, WideResNet, MobileNet and EfficientNet in torchvision and timm,
    and their copies; the last two also have blocks without a shortcut. The layer comes after the last norm, before a
    drop path and the addition, and computes the addition and a ReLU after it too. In a VGG it comes after the last ReLU
    before each pooling.
    The layer is the block's child `cbam`; no other name of the state dict changes. It has the dtype, device and
    number of axes of the block's last convolution, and the block's training mode.
    `where` is told a block's name and says whether it gets a layer. `gentle` begins with gates of 0.9997, whatever x,
    so that a pretrained network computes nearly what it did; they learn slowly at first.

    Raises: ValueError for a model without blocks, for a residual block that computes something else, for `gentle` where
    a gate has no bias, and for what `CBAM` refuses; the model then is as it was.
    Source: arXiv 1807.06521, figure 3.
    """
    options: dict[str, Any] = {
        "reduction": reduction, "kernel_size": kernel_size, "mlp_bias": mlp_bias, "conv_bias": conv_bias,
        "spatial_norm": spatial_norm, "channel_pools": channel_pools, "spatial_pools": spatial_pools,
        "arrangement": arrangement, "gate": gate, "light": light,
    }  # fmt: skip
    allowed = where or (lambda name: True)
    blocks = [(model.get_submodule(name), block) for name, block in find_blocks(model, allowed).items()]
    ends = list(find_stage_ends(model, allowed))
    if not blocks and not ends:
        raise ValueError(
            f"{type(model).__name__} has no residual block and no VGG stage{' that `where` allows' if where else ''}: "
            "expected modules that add a shortcut to layers ending in a norm; call CBAM in your own forward instead"
        )
    # All layers are made before the first is put in, so that an error leaves the model alone.
    at_blocks = [_layer_for(module, block, gentle, options) for module, block in blocks]
    at_ends = [_layer_after(chain, index, gentle, options) for _, chain, index in ends]
    for (module, block), layer in zip(blocks, at_blocks, strict=True):
        _extend(module, block, layer)
    for (_, chain, index), layer in zip(ends, at_ends, strict=True):
        chain[index] = nn.Sequential(OrderedDict(relu=chain[index], cbam=layer))
    made = {*at_blocks, *at_ends}
    return tuple(name.removesuffix("cbam").removesuffix(".") for name, m in model.named_modules() if m in made)


def _layer_for(module: nn.Module, block: Block, gentle: bool, options: dict[str, Any]) -> CBAM:
    width = norm_width(module.get_submodule(block.main[-1]))
    activation = "relu" if _relu_follows(module, block) else None
    return _layer(width, module, last_convolution(module), gentle, {**options, "activation": activation})


def _layer_after(chain: nn.Sequential, index: int, gentle: bool, options: dict[str, Any]) -> CBAM:
    convolution = last_convolution(chain[: index + 1])
    return _layer(convolution.out_channels, chain, convolution, gentle, options)


def _layer(channels: int, block: nn.Module, like: Any, gentle: bool, options: dict[str, Any]) -> CBAM:
    weight = like.weight
    layer = CBAM(channels, **options, dims=weight.ndim - 2, device=weight.device, dtype=weight.dtype)
    if gentle:
        _open(layer)
    return layer.train(block.training)


def _relu_follows(module: nn.Module, block: Block) -> bool:
    """Whether the layer can end the block: nothing lies between it and the addition, and a ReLU follows."""
    if block.shortcut is None or block.between or not block.tail:
        return False
    return block.tail[0] == RELU or type(module._modules[block.tail[0]]) is nn.ReLU


def _extend(module: nn.Module, block: Block, layer: CBAM) -> None:
    if layer.activation is not None:
        block = block._replace(tail=block.tail[1:])
    module.add_module("cbam", layer)
    vars(module)["_cbam_block"] = block
    module.__class__ = _with_cbam(type(module))


# A subclass, not a forward on the instance: that one would be bound to this block in every replica of DataParallel.
@functools.cache
def _with_cbam(kind: type) -> type:
    """The class of a block with a layer: `kind` under its own name, with another forward."""
    body = {"forward": _forward, "__reduce_ex__": _reduced, "__module__": __name__, "_kind": kind}
    return type(kind.__name__, (kind,), body)


def _forward(self: Any, x: Tensor) -> Tensor:
    block: Block = self._cbam_block
    out = run(self, block.main, x)
    if block.shortcut is None:
        return run(self, block.between, self.cbam(out))
    identity = run(self, block.shortcut, x)
    if not block.between:
        return run(self, block.tail, self.cbam(out, residual=identity))
    return run(self, block.tail, run(self, block.between, self.cbam(out)) + identity)


def _reduced(self: Any, protocol: Any) -> tuple[Any, ...]:
    return _restored, (self._kind,), self.__dict__


def _restored(kind: type) -> Any:
    """An empty block of `_with_cbam(kind)`, which pickle cannot find by its name."""
    return object.__new__(_with_cbam(kind))


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
