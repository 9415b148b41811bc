"""Tensors of other classes, layouts and dtypes: the type that PyTorch gives, or a TypeError that names the argument."""

import pytest
import torch
from torch import Tensor, nn

from cbam_triton import CBAM, functional, settings

from ..cases import of_interpreted_exp
from ..checkpoints.published import randomised
from ..errors import assert_same

pytestmark = [of_interpreted_exp, pytest.mark.filterwarnings("ignore::UserWarning")]  # prototypes of PyTorch's own


class Labelled(Tensor):
    """A subclass that hands its label on and allocates in its own way, as those of medical imaging do."""

    label = ""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        made = super().__torch_function__(function, types, arguments, options or {})
        found = [a for a in arguments if isinstance(a, Labelled)]
        for one in made if isinstance(made, tuple) else (made,):
            if isinstance(one, Labelled):
                one.label = found[0].label if found else ""
        return made

    def new_empty(self, size, dtype=None, device=None, requires_grad=False):
        return torch.empty(tuple(size), dtype=dtype, device=device)


def labelled(x: Tensor) -> Labelled:
    made = x.as_subclass(Labelled)
    made.label = "scan"
    return made


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("options", [{}, {"arrangement": "parallel", "spatial_pools": ("conv",)}, {"dims": 3}])
def test_a_subclass_comes_back_as_pytorch_gives_it(backend, gradient, options, device):
    layer = randomised(CBAM(16, 4, kernel_size=3, **options)).eval().to(device)
    x = torch.randn(2, 16, *[4] * options.get("dims", 2), generator=torch.Generator().manual_seed(0)).to(device)
    with settings(backend=backend), torch.set_grad_enabled(gradient):
        for found, expected in (
            (layer(labelled(x)), layer(x)),
            (layer(labelled(x), residual=x), layer(x, residual=x)),
            (layer(x, residual=labelled(x)), layer(x, residual=x)),
            (layer.attention_maps(labelled(x)).channel, layer.attention_maps(x).channel),
            (layer.attention_maps(labelled(x)).spatial, layer.attention_maps(x).spatial),
        ):
            assert type(found) is Labelled
            assert found.label == "scan"
            assert_same(found.as_subclass(Tensor), expected)
        assert type(layer(nn.Parameter(x))) is Tensor


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_subclass_trains_the_layer(backend, device):
    gradients = []
    for kind in (labelled, Tensor.clone):
        layer = randomised(CBAM(16, 4, kernel_size=3)).to(device)
        x = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
        with settings(backend=backend):
            layer(kind(x)).square().sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in layer.parameters())])
    for mine, plain in zip(*gradients, strict=True):
        assert_same(mine.as_subclass(Tensor), plain)


def test_medical_images_keep_their_metadata():
    monai = pytest.importorskip("monai.data")
    layer, x = CBAM(16).eval(), torch.randn(2, 16, 4, 4)
    with torch.no_grad():
        y = layer(monai.MetaTensor(x, meta={"name": "scan"}))
        assert type(y) is monai.MetaTensor
        assert y.meta["name"] == "scan"
        assert_same(y.as_tensor(), layer(x))


OTHERS = {
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "integer": Tensor.int,
    "unsigned": lambda x: x.to(torch.uint16),
    "boolean": Tensor.bool,
    "complex": Tensor.cfloat,
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
    "sparse": Tensor.to_sparse,
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "jagged": lambda x: torch.nested.nested_tensor([x[0], x[1][:1]], layout=torch.jagged),
    "oneDNN": Tensor.to_mkldnn,
    "array": Tensor.numpy,
    "list": Tensor.tolist,
    "string": str,
    "number": lambda x: 5,
    "nothing": lambda x: None,
}
ARGUMENTS = {
    "x": (2, 4, 3, 5),
    "fc1_weight": (2, 4),
    "fc1_bias": (2,),
    "fc2_weight": (4, 2),
    "fc2_bias": (4,),
    "conv_weight": (1, 2, 3, 3),
    "conv_bias": (1,),
    "residual": (2, 4, 3, 5),
}
OPTIONAL = {"fc1_bias", "fc2_bias", "conv_bias", "residual"}


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("kind", OTHERS)
def test_other_tensors_and_other_types_are_refused_by_name(name, kind):
    if (name in OPTIONAL and kind == "nothing") or (kind == "oneDNN" and not torch.backends.mkldnn.is_available()):
        pytest.skip("this one is allowed, or cannot be made here")
    given = {key: torch.ones(shape) for key, shape in ARGUMENTS.items()}
    if kind == "jagged" and (given[name].ndim < 2 or given[name].shape[0] < 2):
        pytest.skip("two rows of rows make a jagged tensor")
    given[name] = OTHERS[kind](given[name])
    refusal = (TypeError, ValueError) if (name, kind) == ("fc2_weight", "nothing") else TypeError
    with pytest.raises(refusal, match=rf"{name}.*, got .*: [a-z]") as caught:
        functional.cbam(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", [functional.cbam, functional.spatial_attention, functional.attention_maps])
@pytest.mark.parametrize("name", ["norm", "descriptor"])
@pytest.mark.parametrize("value", [5, "batch", ("conv",), torch.ones(1)])
def test_what_cannot_be_called_is_refused(function, name, value):
    names = ["x", "conv_weight"] if function is functional.spatial_attention else list(ARGUMENTS)[:-1]
    with pytest.raises(TypeError, match=f"^{name} must be None or callable, got .*: pass a module or a function$"):
        function(**{key: torch.ones(ARGUMENTS[key]) for key in names}, **{name: value})


@pytest.mark.parametrize(
    "option, value, kind",
    [
        *[("light", value, TypeError) for value in ("no", 1, 0, None, [], torch.tensor(True))],
        *[("gate", value, TypeError) for value in (None, 1, ["sigmoid"], torch.zeros(2), b"sigmoid")],
        *[("arrangement", value, TypeError) for value in (None, 2, ("parallel",), torch.zeros(2))],
        *[("channel_pools", value, TypeError) for value in (None, 5, "avg", [["avg"]], {"avg"}, iter(["avg"]))],
        *[("spatial_pools", value, TypeError) for value in (None, "mean", (1, 2), torch.zeros(2))],
        ("gate", "softmax", ValueError),
        ("arrangement", "serial", ValueError),
        ("channel_pools", (), ValueError),
        ("channel_pools", ("avg", "avg"), ValueError),
        ("spatial_pools", ("mean", "median"), ValueError),
        ("activation", 1, ValueError),
        ("activation", torch.zeros(2), ValueError),
    ],
)
def test_options_of_wrong_types_are_refused_by_name(option, value, kind):
    given = {key: torch.ones(shape) for key, shape in ARGUMENTS.items()}
    with pytest.raises(kind, match=rf"(?s)^{option} must be .*, got .*: [a-z]"):
        functional.cbam(**given, **{option: value})


@pytest.mark.parametrize("maps", [3, None, torch.zeros(2, 3, 3, 5), torch.zeros(2, 2, 3), torch.zeros(1, 2, 3, 5)])
def test_a_descriptor_of_other_maps_is_told_their_shape(maps):
    given = {key: torch.ones(shape) for key, shape in ARGUMENTS.items()}
    with pytest.raises(ValueError, match=r"^descriptor must return .* = \(2, 2, 3, 5\), got .*: pass one that does"):
        functional.cbam(**given, descriptor=lambda x: maps)
