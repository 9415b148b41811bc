"""Which published CBAM a state dict is from: the formats as a table, and the recognition by keys and shapes."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from .given import check_state_dict

MEAN_MAX = ("mean", "max")
MAX_MEAN = ("max", "mean")
STATISTICS = ("weight", "bias", "running_mean", "running_var")
_MANY = 6


class Format(NamedTuple):
    """One row: the names of the layers, from which the keys follow, and what the code behind them implies."""

    name: str
    fc1: str
    fc2: str | None  # None: the MLP has one layer
    conv: str
    norm: str | None = None
    mlp: Literal["linear", "conv"] | None = None  # linear layers, 1x1 convolutions, or either
    maps: int | None = 2  # input channels of the convolution; None: any
    pools: tuple[str, ...] = MEAN_MAX
    conv_bias: bool = False  # whether there must be one; there may
    alone: tuple[str, ...] = ()  # what may be all there is
    in_block: bool = False  # the layer is no module of its own: other keys lie beside its own
    one_layer: bool = False  # fc2 may be missing
    squeeze: str | None = None  # the 1x1 convolution in the place of the pools
    weight: str = "weight"
    options: Mapping[str, Any] = {}
    shared: Mapping[str, tuple[Any, ...]] = {}  # options in which published layers with these keys differ, and how

    def key(self, layer: str) -> str:
        return f"{layer}.{self.weight}"

    def own(self, keys: Iterable[str]) -> set[str]:
        """The keys that this format has to account for."""
        if not self.in_block:
            return set(keys)
        return {key for key in keys if key.startswith((_root(self.fc1), _root(self.conv)))}

    def wanted(self, keys: Iterable[str]) -> tuple[set[str], set[str]]:
        """Keys that must be there, and those that may, beside these `keys`."""
        keys = set(keys)
        channel, spatial = (any(key.startswith(_root(layer)) for key in keys) for layer in (self.fc1, self.conv))
        must, may = set[str](), set[str]()
        if channel or not (spatial and "spatial_only" in self.alone):
            layers = [layer for layer in (self.fc1, self.fc2) if layer is not None]
            if self.one_layer and not _under(keys, layers[-1]):
                layers = [self.fc1]
            biases = {f"{layer}.bias" for layer in layers}
            must |= {self.key(layer) for layer in layers} | (biases if biases & keys else set())
        if spatial or not (channel and "channel_only" in self.alone):
            must.add(self.key(self.conv))
            (must if self.conv_bias else may).add(f"{self.conv}.bias")
            if self.norm is not None and _under(keys, self.norm):
                must |= {f"{self.norm}.{name}" for name in STATISTICS}
                may.add(f"{self.norm}.num_batches_tracked")
            if self.squeeze is not None and _under(keys, self.squeeze):
                must |= {self.key(self.squeeze), f"{self.squeeze}.bias"}
        return must, may

    def differences(self, keys: Iterable[str]) -> tuple[list[str], list[str]]:
        """Missing and unexpected keys."""
        own = self.own(keys)
        must, may = self.wanted(own)
        return sorted(must - own), sorted(own - must - may)


_TIMM = ("channel.fc1", "channel.fc2", "spatial.conv.conv", "spatial.conv.bn")
_JONGCHAN = ("ChannelGate.mlp.1", "ChannelGate.mlp.3", "SpatialGate.spatial.conv", "SpatialGate.spatial.bn")

# Code that went from project to project, with its names kept and its forward changed.
_COPIED: dict[str, tuple[Any, ...]] = {"add_input": (False, True), "spatial_pools": (MEAN_MAX, MAX_MEAN)}
_POOLED: dict[str, tuple[Any, ...]] = {"channel_pools": (("avg", "max"), ("avg", "max", "lp", "lse")), **_COPIED}

# The first whose keys and shapes fit is taken.
# fmt: off
FORMATS = (
    Format("cbam_triton", "channel.fc1", "channel.fc2", "spatial.conv", "spatial.norm", mlp="linear", maps=None,
           alone=("channel_only", "spatial_only"), squeeze="spatial.squeeze", one_layer=True),
    Format("stcn", *_JONGCHAN[:3], mlp="linear", pools=MAX_MEAN, conv_bias=True, shared=_COPIED),
    Format("jongchan", *_JONGCHAN, mlp="linear", pools=MAX_MEAN, alone=("channel_only",),
           shared=_POOLED),
    Format("timm", *_TIMM, mlp="conv"),
    Format("timm_light", *_TIMM, mlp="conv", maps=1),
    Format("ultralytics", "channel_attention.fc", None, "spatial_attention.cv1", mlp="conv",
           options={"channel_pools": ("avg",)}),
    Format("external_attention", "ca.se.0", "ca.se.2", "sa.conv", mlp="conv", pools=MAX_MEAN,
           options={"add_input": True}, shared=_COPIED),
    Format("luuuyi", "ca.fc.0", "ca.fc.2", "sa.conv1", mlp="conv", in_block=True, shared=_COPIED),
    Format("luuuyi", "ca.fc1", "ca.fc2", "sa.conv1", mlp="conv", in_block=True, shared=_COPIED),
    Format("bubbliiiing", "channelattention.fc1", "channelattention.fc2", "spatialattention.conv1", mlp="conv",
           shared=_COPIED),
    *(Format("yolo_fork", "channel_attention.f1", "channel_attention.f2", f"spatial_attention.{conv}", mlp="conv",
             shared=_COPIED)
      for conv in ("conv", "conv1", "cv1")),
    Format("mmyolo", "channel_attention.fc.0.conv", "channel_attention.fc.1.conv", "spatial_attention.conv.conv",
           mlp="conv"),
    Format("pytorchcv", "ch_gate.mlp.fc1", "ch_gate.mlp.fc2", "sp_gate.conv.conv", "sp_gate.conv.bn", mlp="linear",
           pools=MAX_MEAN),
    *(Format("copy", f"channel_{noun}.{fc1}", f"channel_{noun}.{fc2}", f"spatial_{noun}.{conv}", shared=_COPIED)
      for noun in ("attention", "att")
      for fc1, fc2 in (("fc1", "fc2"), ("fc.0", "fc.2"))
      for conv in ("conv1", "conv")),
    Format("keras", "dense_1", "dense_2", "conv2d", mlp="linear", weight="kernel"),
)
# fmt: on


def recognise(tensors: Mapping[str, Tensor]) -> Format:
    """The format of a layer's state dict.

    Raises: ValueError for keys of no known format, and for a form whose code is known to compute something else.
    """
    form = _by_keys(tensors)
    if form is None:
        raise ValueError(_unknown(tensors))
    if not _mlp_fits(form, tensors):
        expected = "linear layers (R, C)" if form.mlp == "linear" else "1x1 convolutions (R, C, 1, 1)"
        first = form.key(form.fc1)
        raise ValueError(
            f"the nearest format {form.name!r} has {expected} for its MLP, got {first} {tuple(tensors[first].shape)}: "
            f"{_known_breakage(tensors) or _RENAME}"
        )
    return form


def find_cbam(state_dict: Mapping[str, Any]) -> dict[str, str]:
    """The layers in a whole model's state dict, {prefix: format}; empty where no keys are those of a known format.

    Raises: TypeError for anything but a state dict. Where a training checkpoint was passed, the error says at which key
    its state dict is.

        find_cbam(model.state_dict())  # {"layer1.0.cbam": "jongchan", ...}
    """
    return find_layers(check_state_dict(state_dict, lambda one: bool(find_layers(one))))


def find_layers(state_dict: Mapping[str, Any]) -> dict[str, str]:
    """`find_cbam`, unchecked."""
    ends = {form.key(layer) for form in FORMATS for layer in (form.fc1, form.conv)}
    found: dict[str, str] = {}
    for key in state_dict:
        for end in ends if isinstance(key, str) else ():
            prefix = key[: -len(end)]
            if not key.endswith(end) or (prefix and prefix[-1] != ".") or prefix[:-1] in found:
                continue
            layer = _under_prefix(state_dict, prefix)
            form = _by_keys(layer)
            if form is not None and _mlp_fits(form, layer):
                found[prefix[:-1]] = form.name
    return found


_WHOLE = "pass the whole layer's state dict"
_RENAME = (
    "if the layer computes CBAM, give its tensors this library's keys, channel.fc1.weight (R, C), channel.fc2.weight "
    "(C, R) and spatial.conv.weight (1, 2, K, K) on [mean, max], and convert that"
)


def _by_keys(tensors: Mapping[str, Tensor]) -> Format | None:
    fitting = [form for form in FORMATS if not any(form.differences(tensors))]
    return next((form for form in fitting if _maps_fit(form, tensors)), fitting[0] if fitting else None)


def _mlp_fits(form: Format, tensors: Mapping[str, Tensor]) -> bool:
    weight = tensors.get(form.key(form.fc1))
    return weight is None or form.mlp is None or (weight.ndim == 2) == (form.mlp == "linear")


def _unknown(tensors: Mapping[str, Tensor]) -> str:
    found = find_layers(tensors)
    if found:
        return (
            f"state_dict must be that of one CBAM, got a model's with {len(found)} of them: pass prefix=, one of "
            f"{_listed(found)}"
        )
    near = max(FORMATS, key=lambda form: _similarity(form, tensors))
    missing, unexpected = near.differences(tensors)
    remedy = _RENAME if unexpected else _WHOLE
    return (
        f"state_dict must have the keys of a known CBAM, and the nearest format is {near.name!r}, missing: "
        f"{_listed(missing)}; unexpected: {_listed(unexpected)}: {_known_breakage(tensors) or remedy}"
    )


def _known_breakage(tensors: Mapping[str, Tensor]) -> str | None:
    """What is known of copies with such keys that do not compute CBAM, although nothing in the keys says so."""
    convs = {key.removesuffix(".weight") for key, tensor in tensors.items() if tensor.ndim > 2 and ".weight" in key}
    linear = {key.removesuffix(".weight") for key, tensor in tensors.items() if tensor.ndim == 2 and ".weight" in key}
    stems = {name.rpartition(".")[0] for name in convs | linear}
    if any({f"{stem}.{i}", f"{stem}.{i + 2}"} <= convs for stem in stems for i in (1, 2)):
        return (
            "known code with such keys computes something else, its shared Sequential beginning with a pooling, so "
            f"that there is one branch or two equal ones; look at yours, and {_RENAME}, its pools named in options"
        )
    if any({f"{stem}.0", f"{stem}.2"} <= linear for stem in stems):
        return (
            "known code with such keys computes something else, the sigmoid being inside the shared MLP, so that the "
            f"gate reaches 2; look at yours, and {_RENAME}"
        )
    return None


def _similarity(form: Format, keys: Iterable[str]) -> tuple[int, float]:
    own = form.own(keys)
    must, may = form.wanted(own)
    few = sorted(own)[:40]  # a whole model's keys would take minutes
    alike = difflib.SequenceMatcher(None, "\n".join(few), "\n".join(sorted(must))).ratio()
    return len((must | may) & own), alike


def _maps_fit(form: Format, tensors: Mapping[str, Tensor]) -> bool:
    weight = tensors.get(form.key(form.conv))
    axis = -2 if form.weight == "kernel" else 1
    return form.maps is None or weight is None or (weight.ndim > 2 and weight.shape[axis] == form.maps)


def _under_prefix(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """The tensors whose keys begin so, by their keys without the prefix."""
    return {
        key.removeprefix(prefix): value
        for key, value in state_dict.items()
        if isinstance(key, str) and key.startswith(prefix) and hasattr(value, "shape")
    }


def _root(layer: str) -> str:
    return layer.partition(".")[0] + "."


def _under(keys: set[str], layer: str) -> bool:
    return any(key.startswith(f"{layer}.") for key in keys)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return ", ".join(names[:_MANY]) + more if names else "nothing"
