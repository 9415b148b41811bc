"""Calls drawn from a seed: any public function, any arguments, right ones and wrong ones.

A call is a function without arguments that asserts what it can; `drawn` says in words what it is.
"""

import copy
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import cbam_triton
import cbam_triton.timm
from cbam_triton import CBAM, ChannelAttention, SpatialAttention, functional, settings

from .checkpoints.published import randomised


class Call(NamedTuple):
    """What is called, in words; the call by our code; the same in the reference, or None if there is no number."""

    words: str
    run: Callable[[], Any]
    reference: Callable[[], Any] | None = None
    coarsest: torch.dtype = torch.float32  # what is computed in, of all that meet


class Subclass(Tensor):
    pass


WRONG: list[Any] = [
    None, "x", "no", b"x", 5, -1, 0, 1.5, float("nan"), True, [], [1.0], (), {}, {"a": 1}, object(), int, torch.float32,
    torch.zeros(3), torch.zeros(2, 8, 3, 3), nn.Identity(), torch.tensor(1.0), lambda x: x,
]  # fmt: skip
_UNCALLABLE = [value for value in WRONG if value is not int]  # whose own errors are not ours
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ODD = (
    lambda x: x.int(),
    lambda x: x.to(torch.complex64),
    lambda x: x.to(torch.float8_e5m2),
    lambda x: x.to_sparse(),
    lambda x: x[0],
    lambda x: x[:, :1],
    lambda x: x[..., :0],
    lambda x: x.numpy(),
    lambda x: x.to("meta"),
    lambda x: torch.nested.nested_tensor(list(x)),
)


def drawn(seed: int) -> Call:
    """The call of this seed."""
    choose = random.Random(seed)
    kind = choose.choice(
        [_module, _module, _module, _functional, _functional, _options, _settings, _checkpoint, _model]
    )
    return kind(choose)


def _options_of(choose: random.Random) -> dict[str, Any]:
    """Options of a CBAM, each of them right; not all go together."""
    every: dict[str, list[Any]] = {
        "reduction": [1, 2, 16, 3.0],
        "hidden_channels": [None, None, 0, 1, 5],
        "kernel_size": [1, 3, 7, 17],
        "mlp_bias": [True, False],
        "mlp_layers": [2, 2, 1],
        "conv_bias": [True, False],
        "spatial_norm": ["batch", None],
        "channel_pools": [("avg", "max"), ("max",), ("lp", "lse"), ("lse", "avg", "max", "lp")],
        "spatial_pools": [("mean", "max"), ("max", "mean"), ("mean",), ("conv",)],
        "arrangement": ["channel_first", "spatial_first", "parallel", "channel_only", "spatial_only"],
        "gate": ["sigmoid", "hard_sigmoid"],
        "light": [False, False, True],
        "add_input": [False, True],
        "activation": [None, "relu"],
    }
    names = choose.sample(sorted(every), choose.randint(0, 4))
    return {name: choose.choice(every[name]) for name in names}


def _map(choose: random.Random, channels: int, dims: int) -> Tensor:
    """x of any size, dtype, layout, strides and class."""
    sizes = [choose.choice([0, 1, 1, 2, 3]), channels, *(choose.choice([1, 2, 3, 5, 8]) for _ in range(dims))]
    generator = torch.Generator().manual_seed(choose.randrange(1000))
    x = torch.randn([2 * size for size in sizes], generator=generator).to(choose.choice(DTYPES))
    x = x.relu() if choose.random() < 0.3 else x
    order = list(range(x.ndim))
    choose.shuffle(order)
    x = x.permute(order).contiguous().permute([order.index(i) for i in range(x.ndim)])
    step = choose.choice([1, 2])
    x = x[tuple(slice(0, step * size, step) for size in sizes)]
    if choose.random() < 0.2:
        x = x[:, :, :1].expand(sizes)
    if choose.random() < 0.1:
        x = x.contiguous()
        x.view(-1)[: min(1, x.numel())] = choose.choice([torch.inf, -torch.inf, torch.nan])
    return x.as_subclass(Subclass) if choose.random() < 0.1 else x


def _module(choose: random.Random) -> Call:
    """A layer of any options on any map, in any mode, perhaps with a wrong argument."""
    channels, dims, options = choose.choice([1, 4, 16]), choose.choice([1, 2, 2, 2, 3]), _options_of(choose)
    given: list[Any] = [_map(choose, channels, dims)]
    if choose.random() < 0.3:
        given.append(choose.choice([given[0], given[0].float(), given[0].half(), given[0][:1], None]))
    if choose.random() < 0.25:
        given[choose.randrange(len(given))] = choose.choice([*WRONG, choose.choice(ODD)(torch.ones(2, channels, 3, 4))])
    training, gradient, autocast = choose.random() < 0.3, choose.random() < 0.5, choose.random() < 0.2
    maps, dtype = choose.random() < 0.15, choose.choice([None, None, torch.float64, torch.bfloat16])
    met = [dtype, torch.bfloat16 if autocast else None, *(x.dtype for x in given if isinstance(x, Tensor))]
    coarsest = _coarsest(met)

    def layer() -> CBAM:
        made = randomised(CBAM(channels, dims=dims, **options)).train(training)
        return made if dtype is None else made.to(dtype)

    def run(backend: str) -> Any:
        made = layer()
        with settings(backend=backend), torch.set_grad_enabled(gradient), torch.autocast("cpu", enabled=autocast):
            y = tuple(made.attention_maps(given[0])) if maps else made(*given)
        # A rounded maximum may lie elsewhere; and NaN times a padded zero is NaN in some convolutions only.
        if maps or not y.requires_grad or coarsest is not torch.float32 or not y.isfinite().all():
            return y
        learnt = list(made.parameters())
        found = torch.autograd.grad(y.square().mean() if y.numel() else y.sum(), learnt, allow_unused=True)
        return y, *(g for g in found if g is not None)

    words = (
        f"CBAM({channels}, dims={dims}, {options}) of {dtype}, on {_words(given)}, {training=} {gradient=} {autocast=}"
    )
    return Call(f"{words} {maps=}", lambda: run("auto"), lambda: run("reference"), coarsest)


def _functional(choose: random.Random) -> Call:
    """One of the functions, with right parameters or with a wrong one."""
    name = choose.choice(["cbam", "channel_attention", "spatial_attention", "attention_maps"])
    C, R, K, dims = (
        choose.choice([1, 4, 16]),
        choose.choice([0, 1, 3]),
        choose.choice([1, 3, 17]),
        choose.choice([1, 2, 3]),
    )
    mlp = {"fc1_weight": (R, C), "fc1_bias": (R,), "fc2_weight": (C, R), "fc2_bias": (C,)}
    conv = {"conv_weight": (1, 2, *[K] * dims), "conv_bias": (1,)}
    shapes = {**(mlp if name != "spatial_attention" else {}), **(conv if name != "channel_attention" else {})}
    x = _map(choose, C, dims)
    generator = torch.Generator().manual_seed(1)
    given: dict[str, Any] = {"x": x}
    given |= {key: torch.randn(shape, generator=generator).to(x.dtype) for key, shape in shapes.items()}
    extra: dict[str, list[Any]] = {"gate": ["sigmoid", "hard_sigmoid", *WRONG], "light": [False, *WRONG]}
    if name != "channel_attention":
        extra |= {"norm": [None, torch.tanh, *_UNCALLABLE], "descriptor": [None, *_UNCALLABLE]}
        extra["spatial_pools"] = [("max", "mean"), *WRONG]
    if name == "cbam":
        extra |= {"activation": [None, "relu", *WRONG], "residual": [x, *WRONG], "arrangement": ["parallel", *WRONG]}
    for key in choose.sample(sorted(extra), choose.randint(0, 2)):
        given[key] = choose.choice(extra[key])
    if choose.random() < 0.4:
        key = choose.choice(sorted({*given} - {"norm", "descriptor"}))
        given[key] = choose.choice([*WRONG, choose.choice(ODD)(torch.ones(2, 4, 3, 4))])

    def run(backend: str) -> Any:
        with settings(backend=backend), torch.no_grad():
            found = getattr(functional, name)(**given)
        return tuple(found) if isinstance(found, tuple) else found

    met = [value.dtype for value in given.values() if isinstance(value, Tensor)]
    return Call(f"functional.{name}({_words(given)})", lambda: run("auto"), lambda: run("reference"), _coarsest(met))


def _coarsest(met: list[Any]) -> torch.dtype:
    return next((dtype for dtype in (torch.bfloat16, torch.float16) if dtype in met), torch.float32)


def _options(choose: random.Random) -> Call:
    """A constructor with one wrong option."""
    kind = choose.choice([CBAM, ChannelAttention, SpatialAttention, cbam_triton.timm.CbamModule])
    names: dict[Any, list[str]] = {
        CBAM: ["channels", "reduction", "dims", "hidden_channels", "kernel_size", "mlp_bias", "mlp_layers", "conv_bias",
               "spatial_norm", "channel_pools", "spatial_pools", "arrangement", "gate", "light", "add_input",
               "activation"],
        ChannelAttention: ["channels", "reduction", "hidden_channels", "mlp_bias", "mlp_layers", "channel_pools",
                           "gate"],
        SpatialAttention: ["kernel_size", "dims", "channels", "conv_bias", "spatial_norm", "spatial_pools", "light"],
        cbam_triton.timm.CbamModule: ["channels", "rd_ratio", "rd_channels", "rd_divisor", "spatial_kernel_size",
                                      "act_layer", "gate_layer", "mlp_bias"],
    }  # fmt: skip
    given: dict[str, Any] = {} if kind is SpatialAttention else {"channels": 16}
    given[choose.choice(names[kind])] = choose.choice([*WRONG, -3, 0, 4, 10**3, 0.5, "relu", ("avg",), [["avg"]]])
    return Call(f"{kind.__name__}({_words(given)})", lambda: kind(**given))


def _settings(choose: random.Random) -> Call:
    given = {choose.choice(["backend", "schedule"]): choose.choice(["auto", "reference", "staged", *WRONG])}

    def run() -> None:
        with settings(**given):
            CBAM(4).eval()(torch.ones(1, 4, 2, 2))

    return Call(f"settings({_words(given)})", run)


def _checkpoint(choose: random.Random) -> Call:
    """`convert_state_dict` and `from_state_dict` of a state dict with something wrong in it, or nothing."""
    state: Any = dict(CBAM(16, 4).state_dict())
    key = choose.choice(sorted(state))
    change = choose.randrange(5)
    if change == 0:
        del state[key]
    elif change == 1:
        state[key] = choose.choice([*WRONG, torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int32)])
    elif change == 2:
        state[choose.choice(["extra", 5, "channel.fc3.weight", None])] = torch.zeros(3)
    elif change == 3:
        state = choose.choice(WRONG)
    given: dict[str, Any] = {}
    if choose.random() < 0.4:
        given["prefix"] = choose.choice(["layer1.", "", *WRONG])
    if choose.random() < 0.4:
        given["options"] = choose.choice([{"gate": "hard_sigmoid"}, {"gate": 5}, {"nothing": 1}, *WRONG])
    convert = choose.choice([cbam_triton.convert_state_dict, CBAM.from_state_dict])
    return Call(f"{convert.__name__}({_words(state)}, {_words(given)})", lambda: convert(state, **given))


def _model(choose: random.Random) -> Call:
    """`convert_cbam`, `restore_cbam` and `insert_cbam` of a model, or of something else."""
    function = choose.choice([cbam_triton.convert_cbam, cbam_triton.restore_cbam, cbam_triton.insert_cbam])
    model = choose.choice(
        [*WRONG, nn.Sequential(nn.Conv2d(3, 4, 3), CBAM(4)), nn.ModuleList([nn.ReLU()]), nn.Linear(2, 2)]
    )
    given: dict[str, Any] = {}
    if function is cbam_triton.insert_cbam and choose.random() < 0.5:
        given[choose.choice(["where", "reduction", "nothing"])] = choose.choice(WRONG)
    return Call(
        f"{function.__name__}({_words(model)}, {_words(given)})", lambda: function(copy.deepcopy(model), **given)
    )


def _words(value: Any) -> str:
    if isinstance(value, Tensor) and not value.is_nested and value.layout is torch.strided:
        return f"{type(value).__name__} {tuple(value.shape)} {value.stride()} {value.dtype} {value.device}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_words(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_words, value)) + "]"
    return f"{type(value).__name__}" if isinstance(value, (Tensor, nn.Module)) else repr(value)
