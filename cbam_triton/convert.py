"""CBAM in a model that others wrote, run by the kernels in place: `convert_cbam`, undone by `restore_cbam`.

A converted module keeps its class, children, parameters and keys; only its `forward` becomes an attribute of its own,
bound to it by `functools.partial`, so that copies and pickles run on their own parameters.
"""

import functools
import re
from typing import Any, NamedTuple

from torch import Tensor, fx, jit, nn
from torch.nn.utils.parametrize import is_parametrized

from .dispatch import refined
from .nn import weights_of
from .recognise import OnlyGate, Path, Plan, Unlike, is_norm, recognised

fx.wrap("refined")  # one node of a torch.fx graph: its checks are not for placeholders

_MOST_LAYERS = 5  # with parameters: a CBAM has two to four
_PART = re.compile("att|cbam|channel|gate|spatial", re.IGNORECASE)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Found(NamedTuple):
    """A module by its name in the model and its class, and what was made of it, or why nothing was."""

    name: str
    kind: str
    note: str


class ConversionReport(NamedTuple):
    """What `convert_cbam` found in a model; printed, a table."""

    converted: tuple[Found, ...]
    already: tuple[Found, ...]
    skipped: tuple[Found, ...]

    def __str__(self) -> str:
        groups = {"converted": self.converted, "already": self.already, "skipped": self.skipped}
        rows = [("", "module", "class", "")]
        rows += [(what, found.name or "(the model)", *found[1:]) for what, group in groups.items() for found in group]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join((*map(str.ljust, row[:3], widths), row[3])).rstrip() for row in rows]
        counts = ", ".join(f"{len(group)} {what}" for what, group in groups.items())
        return "\n".join([*(lines if len(lines) > 1 else []), counts])


def convert_cbam(model: nn.Module) -> ConversionReport:
    """Makes every CBAM in the model, of whatever published form, run by `cbam_triton`, in place.

    A CBAM is known by what its forward computes: it is traced on placeholders, nothing is run. Parameters, keys,
    optimizers, modes and hooks of the module stay what they are. What is nearly a CBAM is left alone and reported with
    the reason; so is one with hooks on its children, which would not run any more.

    Raises: TypeError for anything but a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}: pass the model, not its state_dict")
    groups: dict[str, list[Found]] = {name: [] for name in ConversionReport._fields}
    seen: set[int] = set()
    _visit(model, "", groups, seen)
    return ConversionReport(*map(tuple, groups.values()))


def restore_cbam(model: nn.Module) -> int:
    """Gives every converted module in the model its own forward back, and returns how many there were."""
    converted = [module for module in model.modules() if _is_converted(module)]
    for module in converted:
        del module.forward
    return len(converted)


def _visit(module: nn.Module, name: str, groups: dict[str, list[Found]], seen: set[int]) -> bool:
    """Converts or reports this module, or else what is in it; returns whether there was anything."""
    if id(module) in seen:
        return False
    seen.add(id(module))
    kind = module.original_name if isinstance(module, jit.ScriptModule) else type(module).__name__
    row = functools.partial(Found, name, kind)
    if _is_converted(module):
        groups["already"].append(row("converted before"))
        return True
    if type(module).__module__.split(".")[0] == __package__:
        groups["already"].append(row("of cbam_triton"))
        return True
    children = {f"{name}.{key}" if name else key: child for key, child in module.named_children()}
    layers = _layers(module)
    # A wrapper has the layers of what it wraps, and is not to be taken for it.
    wrapped = next((key for key, child in children.items() if len(_layers(child)) == len(layers)), None)
    if 1 <= len(layers) <= _MOST_LAYERS and wrapped is not None and _visit(children[wrapped], wrapped, groups, seen):
        return True
    likeness = _likeness(module, kind, name, layers)
    reason = None
    if likeness:
        try:
            plan = _checked_plan(module, likeness)
        except Unlike as unlike:
            reason = unlike if likeness != "part" or isinstance(unlike, OnlyGate) else None
        else:
            module.forward = functools.partial(_forward, module, plan)
            groups["converted"].append(row(_described(module, plan)))
            return True
    inner = groups if reason is None else {group: [] for group in groups}
    found = sum(_visit(child, key, inner, seen) for key, child in children.items()) > 0
    if reason is None:
        return found
    # A part that can be converted by itself is; of one that cannot, the reason of the whole tells more.
    groups["converted"] += inner["converted"]
    groups["skipped"].append(row(str(reason)))
    return True


def _forward(module: nn.Module, plan: Plan, x: Tensor) -> Tensor:
    """The converted module of x; switches, weights and the norm's mode are read at each call."""
    mlp: Any = []
    for path in plan.mlp:
        weight, bias = weights_of(_at(module, path))
        mlp += [weight.flatten(1), bias]  # a 1x1 convolution's as a matrix
    mlp = (*mlp, None, None)[:4] if mlp else None
    conv, conv_bias = (None, None) if plan.conv is None else weights_of(_at(module, plan.conv))
    norm = None if plan.norm is None else _at(module, plan.norm)
    return refined(x, mlp, conv, conv_bias, norm, x if plan.add_input else None, None, plan.variant)


def _at(module: nn.Module, path: Path) -> Any:
    found: Any = module
    for name in path:
        found = found._modules[name]
    return found


def _is_converted(module: nn.Module) -> bool:
    own = module.__dict__.get("forward")
    return isinstance(own, functools.partial) and own.func is _forward


def _checked_plan(module: nn.Module, likeness: str) -> Plan:
    if isinstance(module, jit.ScriptModule):
        raise Unlike("it is compiled by TorchScript: convert the model before torch.jit.script")
    for name, part in module.named_modules():
        if "forward" in part.__dict__:
            raise Unlike(f"the forward of {name or 'this module'} is replaced by another one")
        if part is not module and not is_norm(part) and any(getattr(part, hooks) for hooks in _HOOKS):
            raise Unlike(f"its child {name} has hooks, which would no longer run: remove them first")
    plan = recognised(module)
    if likeness == "part" and plan.conv is None and "max" not in plan.variant.channel_pools:
        raise Unlike("it is a squeeze-and-excitation layer")
    return plan


def _likeness(module: nn.Module, kind: str, name: str, layers: list[nn.Module]) -> str | None:
    """How far its layers with parameters are those of a CBAM: "whole", "part", "named" after it, or None."""
    if not 1 <= len(layers) <= _MOST_LAYERS:
        return None
    if "cbam" in kind.lower():
        return "named"
    spatial = [layer for layer in layers if _gathers_maps(layer)]
    others = [layer for layer in layers if not (_gathers_maps(layer) or is_norm(layer))]
    if len(spatial) > 1 or any(not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) for layer in others):
        return None
    if spatial and 1 <= len(others) <= 2:
        return "whole"
    is_part = (spatial and not others) or len(others) == 2
    return "part" if is_part and _PART.search(f"{kind} {name.rpartition('.')[2]}") else None


def _gathers_maps(layer: Any) -> bool:
    """Whether this could be the convolution of the pooled maps."""
    convolution = isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return convolution and layer.out_channels == 1 and layer.in_channels <= 2 and layer.kernel_size[0] > 1


def _layers(module: nn.Module) -> list[nn.Module]:
    """The modules with parameters or buffers of their own in it, itself among them; a few more than enough."""
    own = (*module._parameters.values(), *module._buffers.values())
    found = [module] if any(tensor is not None for tensor in own) or is_parametrized(module) else []
    for key, child in module.named_children():
        if key != "parametrizations" and len(found) <= _MOST_LAYERS:
            found += _layers(child)
    return found


def _described(module: nn.Module, plan: Plan) -> str:
    words = []
    if plan.mlp:
        shape = weights_of(_at(module, plan.mlp[0]))[0].shape
        hidden = f", R {shape[0]}" if len(plan.mlp) == 2 else ""
        words.append(f"channel gate of {'+'.join(plan.variant.channel_pools)}, C {shape[1]}{hidden}")
    if plan.conv:
        shape = weights_of(_at(module, plan.conv))[0].shape
        norm = f", {type(_at(module, plan.norm)).__name__}" if plan.norm else ""
        words.append(f"spatial gate of {'+'.join(plan.variant.spatial_pools)}, K {shape[-1]}{norm}")
    if plan.variant.arrangement != "channel_first":
        words.append(plan.variant.arrangement)
    words += ["light"] * plan.variant.light + [plan.variant.gate] * (plan.variant.gate != "sigmoid")
    return "; ".join(words) + " + x" * plan.add_input
