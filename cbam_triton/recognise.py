"""Whether a module computes CBAM, in whatever form, and where its layers are; or why it does not.

Read off a symbolic trace of its forward, which runs its Python code on placeholders and computes nothing. Names of
classes and attributes play no part: a forward that somebody changed has another term.
"""

from typing import Any, NamedTuple

from torch import jit, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import type_before_parametrizations

from .norms import plain_type
from .readings import term_of
from .terms import Term, X, is_vector, product, unknown_in
from .traces import Untraceable, in_both_modes
from .variant import Variant, checked_variant

Path = tuple[str, ...]


class Plan(NamedTuple):
    """Where in a module the layers of its CBAM are, and which variant it is."""

    mlp: tuple[Path, ...]
    conv: Path | None
    norm: Path | None
    add_input: bool
    variant: Variant


class Unlike(Exception):
    """The module is not a CBAM that can be converted; the message says why."""


class OnlyGate(Unlike):
    """The module returns a gate of CBAM, unmultiplied."""


class _Gate(NamedTuple):
    """A factor of x: the map that it is of, and the layers that it goes through."""

    term: Term
    source: Term
    pools: tuple[str, ...]
    light: bool
    mlp: tuple[Path, ...] = ()
    conv: Path | None = None
    norm: Path | None = None


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GATES = ("sigmoid", "hard_sigmoid")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_OTHER_NORMS = (nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_OTHER_RESULT = "its result is not x times a channel gate and a spatial gate of it"


def recognised(module: nn.Module) -> Plan:
    """The plan of a CBAM.

    Raises: Unlike for a module that computes anything else.
    """
    found = _term(module)
    if found.kind in _GATES:
        _gate(module, found)
        raise OnlyGate("it returns a gate, which the code around it multiplies: no kernel makes one gate by itself")
    return plan_of(module, found)


def plan_of(module: nn.Module, found: Term) -> Plan:
    """The plan of what this term of layers in the module computes.

    Raises: Unlike for anything but a CBAM.
    """
    add_input = found.kind == "sum" and len(found.parts) == 2 and X in found.parts
    if add_input:
        found = found.parts[1 - found.parts.index(X)]
    if found.kind != "product" or found.parts.count(X) != 1:
        raise Unlike(_OTHER_RESULT)
    gates = [_gate(module, part) for part in found.parts if part != X]
    return _plan([gate for gate in gates if gate.mlp], [gate for gate in gates if gate.conv], add_input)


def gate_of(module: nn.Module) -> Term:
    """The term of a module that returns a gate of CBAM.

    Raises: Unlike for a module that returns anything else.
    """
    found = _term(module)
    if found.kind not in _GATES:
        raise Unlike("it returns no gate")
    _gate(module, found)
    return found


def is_squeeze(plan: Plan) -> bool:
    """Whether this is no more than a squeeze-and-excitation layer."""
    return plan.conv is None and "max" not in plan.variant.channel_pools


def check_untouched(module: nn.Module, prefix: str = "") -> None:
    """No part of the module does something besides its own forward.

    Raises: Unlike, in which names begin with `prefix`.
    """
    if isinstance(module, jit.ScriptModule):
        raise Unlike("it is compiled by TorchScript: convert the model that was compiled")
    for name, part in module.named_modules(prefix=prefix):
        if "forward" in part.__dict__:
            raise Unlike(f"the forward of {name or 'this module'} is replaced by another one")
        if name and not is_norm(part) and any(getattr(part, hooks) for hooks in HOOKS):
            raise Unlike(f"its child {name} has hooks, which would no longer run: remove them first")


def is_norm(layer: nn.Module) -> bool:
    """Whether this is a norm of PyTorch's, or timm's batch norm with nothing after it."""
    if isinstance(layer, _BatchNorm) and plain_type(layer) in _BATCH_NORMS:
        return True
    return type(layer) in _OTHER_NORMS


def _term(module: nn.Module) -> Term:
    try:
        training, found = in_both_modes(module, term_of)
    except Untraceable as error:
        raise Unlike(str(error)) from None
    if training != found:
        raise Unlike("its forward does another thing in training than in eval mode")
    unknown = unknown_in(found)
    if unknown:
        raise Unlike(f"its forward uses {unknown}, which CBAM has not")
    return found


def _plan(channel: list[_Gate], spatial: list[_Gate], add_input: bool) -> Plan:
    gates = [*channel, *spatial]
    if len(channel) > 1 or len(spatial) > 1:
        raise Unlike("it has several gates of one kind")
    if len({(gate.term.kind, gate.light) for gate in gates}) > 1:
        raise Unlike("its two gates differ in their function, or only one of them is light")
    options: dict[str, Any] = {"gate": gates[0].term.kind, "light": gates[0].light}
    if channel and not gates[0].light:
        options["channel_pools"] = channel[0].pools
    if spatial and not gates[0].light:
        options["spatial_pools"] = spatial[0].pools
    if channel and spatial:
        options["arrangement"] = _arrangement(channel[0], spatial[0])
    elif gates[0].source != X:
        raise Unlike(_OTHER_RESULT)
    try:
        variant = checked_variant(**options)
    except ValueError as error:
        raise Unlike(str(error)) from None
    conv, norm = (spatial[0].conv, spatial[0].norm) if spatial else (None, None)
    return Plan(channel[0].mlp if channel else (), conv, norm, add_input, variant)


def _arrangement(channel: _Gate, spatial: _Gate) -> str:
    sources = (channel.source, spatial.source)
    if sources == (X, product(X, channel.term)):
        return "channel_first"
    if sources == (product(X, spatial.term), X):
        return "spatial_first"
    if sources == (X, X):
        return "parallel"
    raise Unlike(_OTHER_RESULT)


def _gate(module: nn.Module, term: Term) -> _Gate:
    if term.kind not in _GATES:
        raise Unlike("a factor of x is neither a sigmoid nor a hard sigmoid")
    logits = term.parts[0]
    return (_channel_gate if is_vector(logits) else _spatial_gate)(module, term, logits)


def _channel_gate(module: nn.Module, term: Term, logits: Term) -> _Gate:
    """gate(sum of MLP(pool)), one MLP for all."""
    found = [_mlp(branch) for branch in (logits.parts if logits.kind == "sum" else (logits,))]
    mlp = found[0][0]
    light, names, source = _pools("pool", [pool for _, pool in found])
    if any(other != mlp for other, _ in found):
        raise Unlike("its pools go through different MLPs")
    widths = [_widths(module.get_submodule(".".join(path))) for path in mlp]
    if widths[0][0] != widths[-1][1] or widths[0][1] != widths[-1][0]:
        raise Unlike("its MLP does not lead from C channels back to C")
    # A sum has no order.
    pools = tuple(sorted("avg" if name == "mean" else name for name in names))
    return _Gate(term, source, pools, light, mlp=mlp)


def _mlp(branch: Term) -> tuple[tuple[Path, ...], Term]:
    """(paths of the layers, what goes in): one layer, or two with ReLU between."""
    if branch.kind != "layer":
        raise Unlike("its MLP does not end with a linear layer")
    path, inner = branch.parts
    if inner.kind == "relu" and inner.parts[0].kind == "layer":
        first, pool = inner.parts[0].parts
        return (first, path), pool
    return (path,), inner


def _spatial_gate(module: nn.Module, term: Term, logits: Term) -> _Gate:
    """gate(norm(conv(maps)))."""
    norm = None
    if logits.kind == "layer" and is_norm(module.get_submodule(".".join(logits.parts[0]))):
        norm, logits = logits.parts
    if logits.kind != "layer":
        raise Unlike("its spatial gate is not of a convolution and a norm")
    path, maps = logits.parts
    _check_convolution(module.get_submodule(".".join(path)))
    light, names, source = _pools("map", list(maps.parts) if maps.kind == "cat" else [maps])
    return _Gate(term, source, names, light, conv=path, norm=norm)


def _pools(kind: str, found: list[Term]) -> tuple[bool, tuple[str, ...], Term]:
    """(whether it is the sum of two halves, the pools' names, the map that they are of)."""
    only = found[0]
    light = len(found) == 1 and only.kind == "sum" and [part.kind for part in only.parts] == ["half", "half"]
    if light:
        found = [half.parts[0] for half in only.parts]
    if any(pool.kind != kind for pool in found):
        raise Unlike("it pools otherwise than CBAM does")
    if any(pool.parts[1] != found[0].parts[1] for pool in found):
        raise Unlike("its pools are of different maps")
    return light, tuple(pool.parts[0] for pool in found), found[0].parts[1]


def _widths(layer: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer or a convolution that is one."""
    kind = type_before_parametrizations(layer)
    if kind is nn.Linear:
        return layer.in_features, layer.out_features
    if kind in _CONVOLUTIONS and {*layer.kernel_size, *layer.stride, layer.groups} == {1}:
        unpadded = layer.padding in ("same", "valid") or set(layer.padding) == {0}
        if unpadded:
            return layer.in_channels, layer.out_channels
    raise Unlike("a layer of its MLP is neither linear nor a 1x1 convolution")


def _check_convolution(layer: Any) -> None:
    if type_before_parametrizations(layer) not in _CONVOLUTIONS:
        raise Unlike("its spatial gate is not of a plain convolution")
    size = layer.kernel_size[0]
    plain = {*layer.stride, *layer.dilation, layer.groups, layer.out_channels} == {1} and layer.padding_mode == "zeros"
    centred = layer.padding == "same" or set(layer.padding) == {size // 2}
    if not (plain and centred) or set(layer.kernel_size) != {size} or size % 2 == 0:
        raise Unlike("the convolution of its spatial gate is not K x K with K odd, padding K // 2 and stride 1")
