"""CBAMs of others in a live model, replaced by layers of ours with their weights: `replace_cbam`."""

from typing import Any

from torch import nn

from ..nn import CBAM
from .apply_cbam import Converted
from .convert import ConversionReport, Found, convert_cbam
from .patch import conversion_of, is_replaced, restore_forward
from .recognition.plan import Plan

_PLAIN = (bool, int, float, str, list, tuple, type(None))


def replace_cbam(model: nn.Module, *, squeeze_excite: bool = False) -> ConversionReport:
    """Puts a `CBAM` of this library in the place of every module of `model` that computes one, in place.

    A CBAM is known by what its forward computes, as `convert_cbam` knows it, so that layers with equal keys and another
    forward come out right. The weights are the same numbers, the norm is the same module, and the mode stays; the names
    in the state dict change to those of `CBAM`. Plain attributes of the old module are kept, such as those that a
    trainer sets. A 1x1 convolution becomes a linear layer with a parameter of its own, so make the optimizer after.

    A model without conversions is left behind: nothing depends on how a module was converted, and what is saved whole
    loads wherever this library is installed. What cannot be replaced is reported with the reason, and stays as it was:
    gates that a block multiplies in its own forward, and modules with hooks of their own. With `squeeze_excite` layers
    of squeeze-and-excitation are replaced too, by a `CBAM` with `arrangement="channel_only"`.

    Raises: TypeError for anything but a module.

        model.load_state_dict(checkpoint)  # first, by the old names
        print(replace_cbam(model))
    """
    earlier = {module for module in model.modules() if is_replaced(module)} if isinstance(model, nn.Module) else set()
    report = convert_cbam(model, squeeze_excite=squeeze_excite)
    made = dict[nn.Module, CBAM]()
    rows: dict[str, list[Found]] = {"converted": [], "already": [], "skipped": list(report.skipped)}
    for found in (*report.converted, *report.already):
        module = model.get_submodule(found.name)
        conversion = conversion_of(module)
        if conversion is None:
            rows["already"].append(found)
            continue
        reason = _reason(found.name, module, conversion)
        if reason is None:
            made[module] = _layer(module, conversion.plan)
            rows["converted"].append(found._replace(note=f"replaced: {found.note}"))
        else:
            rows["skipped"].append(found._replace(note=reason))
    for module in model.modules():
        if is_replaced(module) and module not in earlier:
            restore_forward(module)
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child in made:
                parent._modules[key] = made[child]
    return ConversionReport(*map(tuple, rows.values()))


def _reason(name: str, module: nn.Module, conversion: Any) -> str | None:
    """Why a converted module cannot be replaced."""
    if not isinstance(conversion, Converted):
        return "its own forward multiplies the gates: convert_cbam runs these"
    if not name:
        return "it is the model itself: pass a module that holds it, such as nn.Sequential(model)"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, kind) for kind in hooks):
        return "it has hooks, which a new layer would not have: remove them first"
    plan = conversion.plan
    paths = [*plan.mlp, *([] if plan.conv is None else [plan.conv])]
    for layer in map(module.get_submodule, map(".".join, paths)):
        if not isinstance(layer._parameters.get("weight"), nn.Parameter):
            return "a weight of it is computed from others, by a parametrization: convert_cbam runs it"
    return None


def _layer(module: nn.Module, plan: Plan) -> CBAM:
    """The layer of ours that computes what the plan of the module says, on its parameters and its norm."""
    mlp: list[Any] = [module.get_submodule(".".join(path)) for path in plan.mlp]
    conv: Any = None if plan.conv is None else module.get_submodule(".".join(plan.conv))
    variant, options = plan.variant, dict[str, Any]()
    if mlp:
        options |= {"channel_pools": variant.channel_pools, "mlp_layers": len(mlp)}
        options |= {"hidden_channels": mlp[0].weight.shape[0]} if len(mlp) == 2 else {}
    if conv is not None:
        options |= {"kernel_size": conv.kernel_size[0], "dims": conv.weight.ndim - 2, "spatial_norm": None}
        options |= {"spatial_pools": variant.spatial_pools}
    arrangement = variant.arrangement if mlp and conv is not None else "channel_only" if mlp else "spatial_only"
    channels = mlp[0].weight.shape[1] if mlp else 1  # a spatial attention is of any
    layer = CBAM(
        channels, arrangement=arrangement, gate=variant.gate, light=variant.light, add_input=plan.add_input,
        device="meta", **options,
    )  # fmt: skip
    for part in layer.modules():
        part.training = module.training
    if mlp:
        for ours, theirs in zip((layer.channel.fc1, layer.channel.fc2), mlp, strict=False):
            _take(ours, theirs)
    if conv is not None:
        _take(layer.spatial.conv, conv)
        layer.spatial.norm = None if plan.norm is None else module.get_submodule(".".join(plan.norm))
    own = {key: value for key, value in vars(module).items() if isinstance(value, _PLAIN) and not key.startswith("_")}
    vars(layer).update({key: value for key, value in own.items() if key not in vars(layer)})
    return layer


def _take(ours: nn.Module, theirs: Any) -> None:
    """Gives a layer the weights of another; a 1x1 convolution's become a matrix."""
    expected = next(ours.parameters())
    for name in ("weight", "bias"):
        tensor = theirs._parameters.get(name)
        if tensor is not None and tensor.ndim != (expected.ndim if name == "weight" else 1):
            tensor = nn.Parameter(tensor.detach().flatten(1), tensor.requires_grad)
        ours._parameters[name] = tensor
