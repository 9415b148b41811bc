"""The functions of PyTorch in which people write CBAM, and the first step of a trace that is none of them.

They need not be used as a CBAM uses them: the proof tells that. But none of them draws random numbers, stops a
gradient, changes a dtype or asks for a value, so a proof on a few maps says what they do on all.
"""

from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from .layers import role_of
from .nodes import has_dtype, limits_of, name_of, words_for
from .plan import UnknownStep, Unlike

# fmt: off
_SHAPES = (
    "broadcast_to", "cat", "chunk", "concat", "concatenate", "contiguous", "dim", "expand", "expand_as", "flatten",
    "flip", "getitem", "hsplit", "hstack", "identity", "moveaxis", "movedim", "narrow", "ndimension", "numel",
    "permute", "repeat", "repeat_interleave", "reshape", "reshape_as", "select", "size", "split", "squeeze", "stack",
    "swapaxes", "swapdims", "t", "tensor_split", "tile", "to", "transpose", "type_as", "unbind", "unflatten",
    "unsqueeze", "view", "view_as", "vstack",
)
_POOLS = (
    "adaptive_avg_pool", "adaptive_max_pool", "amax", "avg_pool", "fmax", "linalg_norm", "linalg_vector_norm",
    "logsumexp", "lp_pool", "max", "max_pool", "maximum", "mean", "norm", "sum", "vector_norm",
)
_ARITHMETIC = (
    "add", "addcmul", "clone", "div", "divide", "einsum", "exp", "floordiv", "log", "mul", "multiply", "neg", "pow",
    "prod", "reciprocal", "rsub", "sqrt", "square", "sub", "true_divide", "truediv",
)
_GATES = ("expit", "hardsigmoid", "sigmoid")
_OTHERS = ("clamp", "clamp_min", "clip", "hardtanh", "relu", "relu6")
# fmt: on
_KNOWN = frozenset((*_SHAPES, *_POOLS, *_ARITHMETIC, *_GATES, *_OTHERS))
_EINOPS = frozenset(f"einops.{name}" for name in ("reduce", "rearrange", "repeat", "einsum"))
_ATTRIBUTES = ("shape", "values", "dtype", "device", "ndim")
_LIMITS = ((0, 6), (0, 1), (0, None), None)
_GATE_LIKE = frozenset((*_GATES, "tanh", "softmax", "hardswish", "silu"))
_MAXIMA = frozenset(("max", "amax", "maximum", "adaptive_max_pool", "max_pool", "topk"))

_MEANS = frozenset(("mean", "avg_pool", "adaptive_avg_pool", "einops.reduce"))
_SQUEEZE_GATES = frozenset((*_GATE_LIKE, "relu6", "hardtanh", "clamp")) - {"softmax", "silu", "hardswish"}
_PRODUCTS = frozenset(("mul", "multiply"))


def resembles_cbam(nodes: Iterable[fx.Node]) -> bool:
    """Whether there are a maximum and a gate among these steps: squeeze-and-excitation has no maximum."""
    names = {name_of(node) for node in nodes}
    reduced = "einops.reduce" in names
    return bool(names & _GATE_LIKE) and (reduced or bool(names & _MAXIMA))


def resembles_squeeze(nodes: Iterable[fx.Node]) -> bool:
    """Whether there are a mean, a gate and a product among these steps, as in squeeze-and-excitation."""
    names = {name_of(node) for node in nodes}
    return bool(names & _MEANS) and bool(names & _SQUEEZE_GATES) and bool(names & _PRODUCTS)


def check_steps(module: nn.Module, nodes: Iterable[fx.Node]) -> dict[str, Any]:
    """The layers that these steps call, by path, in their order.

    Raises: Unlike, with the first step that a CBAM has not.
    """
    layers: dict[str, Any] = {}
    for node in nodes:
        if node.op == "call_module":
            path = str(node.target)
            layers[path] = module.get_submodule(path)
            role_of(path, layers[path])
        elif node.op == "get_attr":
            raise Unlike(f"its forward uses the tensor {node.target} outside of a layer")
        elif node.op in ("call_function", "call_method") and not _is_known(node):
            raise UnknownStep(f"its forward uses {words_for(node)}, which CBAM has not")
    return layers


def constants(nodes: Iterable[fx.Node]) -> set[int]:
    """The whole numbers above one that these steps are given."""
    found: set[int] = set()
    todo: list[Any] = [value for node in nodes for value in (*node.args, *node.kwargs.values())]
    while todo:
        value = todo.pop()
        if isinstance(value, (tuple, list)):
            todo += value
        elif isinstance(value, slice):
            todo += [value.start, value.stop, value.step]
        elif isinstance(value, int) and not isinstance(value, bool) and value > 1:
            found.add(value)
    return found


def _is_known(node: fx.Node) -> bool:
    name = name_of(node)
    if name in ("getattr", "getattribute"):
        return node.args[1] in _ATTRIBUTES
    return not has_dtype(node) and limits_of(node) in _LIMITS and (name in _KNOWN or name in _EINOPS)
