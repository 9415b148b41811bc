"""Forms of users' own in `python -m bench run --with`: held to the rule, timed with the others, never in their way."""

import csv
import sys
import textwrap

import pytest
import torch

from bench import contenders, own_forms
from bench.__main__ import main
from cbam_triton import settings
from cbam_triton.demo.options import InputError
from cbam_triton.testing.timing import Timing

TINY = ["run", "--shapes", "2x24x7x5", "--device", "cpu", "--no-compile", "--seconds", "0", "--layout", "nchw"]
HEAD = """
import torch
from torch import nn
from cbam_triton import CBAM, settings
from cbam_triton.testing.published import jongchan_like, timm_like
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command on a module of this text; its status, rows by form, and what it printed."""

    def call(text, *words, name="forms"):
        (tmp_path / "own_forms_of_a_test.py").write_text(HEAD + textwrap.dedent(text))
        with settings(backend="reference"):
            status = main([*TINY, "--with", f"own_forms_of_a_test:{name}", *words])
        rows = {row["form"]: row for row in csv.DictReader((tmp_path / "results.csv").read_text().splitlines())}
        return status, rows, capsys.readouterr().out

    def timed(calls, *_, **__):
        for once in calls.values():
            for _ in range(3):
                once()
        return {name: Timing(0.5 if name == "mine" else 1.0, 0.0) for name in calls}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(contenders, "interleaved", timed)
    yield call
    sys.modules.pop("own_forms_of_a_test", None)


@pytest.mark.parametrize("words", [(), ("--backward",)])
@pytest.mark.parametrize(
    "text, name",
    [
        ("forms = {'mine': timm_like}", "forms"),
        ("forms = lambda: {'mine': timm_like}", "forms"),
        ("def mine(layer):\n    return timm_like(layer)", "mine"),
        ("class package:\n    class mine(nn.Module):\n        def __init__(self, layer):\n"
         "            super().__init__()\n            self.form = jongchan_like(layer)\n"
         "        def forward(self, x):\n            return self.form(x)", "package.mine"),
    ],
)  # fmt: skip
def test_a_form_is_timed_with_the_others(run, text, name, words):
    status, rows, printed = run(text, *words, name=name)
    assert status == 0
    assert list(rows) == ["published", "timm", "ours", "mine"]
    own = rows["mine"]
    assert (own["median_us"], own["over_published"], own["over_timm"], own["note"]) == (
        "500000.00",
        "2.000",
        "2.000",
        "",
    )
    assert float(own["error_over_eager"]) <= 2
    assert "mine" in printed


@pytest.mark.parametrize(
    "factory, words, note",
    [
        ("lambda layer: lambda x: x * 0.5", (), "wrong"),
        ("lambda layer: 1 / 0", (), "ZeroDivisionError: division by zero"),
        ("lambda layer: lambda x: x @ x", (), "RuntimeError: "),
        ("lambda layer: None", (), "the factory returned a NoneType, expected a function or module of x"),
        ("lambda layer: lambda x: (x,)", (), "it returned a tuple, expected a tensor"),
        (
            "lambda layer: lambda x: x.double()",
            (),
            "it returned (2, 24, 7, 5) torch.float64 on cpu, expected (2, 24, 7",
        ),
        ("lambda layer: lambda x: x[:1]", (), "it returned (1, 24, 7, 5) torch.float32 on cpu, expected (2, 24, 7, 5)"),
        ("lambda layer: lambda x: timm_like(layer)(x.mul_(1.5))", (), "it writes to x, expected a new tensor"),
        ("lambda layer: lambda x: timm_like(layer)(x).detach()", ("--backward",), "y has no gradient, expected one"),
        ("lambda layer: lambda x: timm_like(layer)(x.detach())", ("--backward",), "y has no gradient for x, expected"),
        ("scaled_gradient", ("--backward",), "wrong"),
        ("half_a_bias", ("--backward",), "wrong"),
        ("no_bias", ("--backward",), "wrong"),
        ("late", (), "while it was timed: RuntimeError: enough"),
        ("late", ("--backward",), "while it was timed: RuntimeError: enough"),
    ],
)
def test_a_form_that_fails_is_told_and_stops_no_other(run, factory, words, note):
    text = """
    def scaled_gradient(layer):
        form = timm_like(layer)
        return lambda x: form(x.detach() + 1.5 * (x - x.detach()))

    def half_a_bias(layer):
        form = timm_like(layer)
        form.fc2.bias.register_hook(lambda gradient: gradient / 2)
        return form

    def no_bias(layer):
        form = timm_like(layer)
        def function(x):
            form.fc2.bias.requires_grad_(True)
            return torch.func.functional_call(form, {"fc2.bias": form.fc2.bias.detach()}, x)
        class Form(nn.Module):
            def __init__(self):
                super().__init__()
                self.form = form
            def forward(self, x):
                return function(x)
        return Form()

    def late(layer):
        form, calls = timm_like(layer), []
        def function(x):
            calls.append(1)
            print("call", len(calls))
            if len(calls) > 2:
                raise RuntimeError("enough")
            return form(x)
        return function
    """
    status, rows, printed = run(textwrap.dedent(text) + f"\nforms = {{'bad': {factory}, 'mine': timm_like}}", *words)
    assert status == 0
    assert rows["bad"]["note"].startswith(note)
    assert (rows["bad"]["median_us"], rows["bad"]["over_timm"]) == ("", "")
    for name in ("published", "timm", "ours", "mine"):
        assert (rows[name]["note"], bool(rows[name]["median_us"])) == ("", True)
    assert f"not timed: {note}" in printed
    assert "call 4" not in printed


def test_a_factory_cannot_change_the_layer_of_the_others(run):
    text = """
    def first(layer):
        layer.channel.fc2.bias.data.add_(1)
        return timm_like(layer)

    forms = {"first": first, "mine": timm_like}
    """
    status, rows, _ = run(text)
    assert status == 0
    assert {name: row["note"] for name, row in rows.items() if row["note"]} == {"first": "wrong"}


@pytest.mark.parametrize(
    "factory, note",
    [
        ("timm_like", ""),
        ("jongchan_like", ""),
        ("lambda layer: layer", ""),
        ("lambda layer: lambda x: layer(x)", ""),
        (
            "lambda layer: timm_like(layer).requires_grad_(False)",
            "parameters' gradients not compared: y does not depend",
        ),
        ("lambda layer: Wide(layer)", "parameters' gradients not compared: they are not the layer's in its order"),
    ],
)
def test_gradients_of_parameters_are_compared_where_they_can_be(run, factory, note):
    text = """
    class Wide(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.form, self.one = timm_like(layer), nn.Parameter(torch.ones(1))
        def forward(self, x):
            return self.form(x) * self.one
    """
    status, rows, _ = run(textwrap.dedent(text) + f"\nforms = {{'mine': {factory}}}", "--backward")
    assert status == 0
    assert rows["mine"]["note"].startswith(note)
    assert bool(rows["mine"]["note"]) == bool(note)
    assert rows["mine"]["median_us"] == "500000.00"


def test_a_module_gets_the_mode_of_what_is_timed(run):
    text = """
    def mine(layer):
        form = timm_like(layer).train()
        form.register_forward_pre_hook(lambda module, given: print("training", module.training))
        return form
    """
    assert "training False" in run(text, name="mine")[2]
    assert "training True" in run(text, "--backward", name="mine")[2]


def test_a_device_that_a_form_broke_ends_the_command(run, monkeypatch, capsys):
    monkeypatch.setattr(contenders, "device_works", lambda device: False)
    status, rows, _ = run("forms = {'mine': lambda layer: 1 / 0}")
    assert (status, rows) == (2, {})
    monkeypatch.undo()
    assert own_forms.device_works(torch.device("cpu"))


@pytest.mark.parametrize(
    "spec, message",
    [
        ("own", "expected package.module:attribute, got 'own'; the attribute is a mapping of names to factories"),
        ("own:", "expected package.module:attribute, got 'own:'"),
        ("nowhere_at_all:x", "--with nowhere_at_all:x: there is no module 'nowhere_at_all' here or installed"),
        ("own.inner:x", "there is no module 'own.inner' here or installed"),
        ("own:from", "own has no attribute 'from'; it has form"),
        ("own:form.x.y", "own has no attribute 'form.x.y'"),
        ("needs:x", "--with needs:x: needs needs a module that is not there: nowhere_at_all"),
        ("broken:x", "importing broken raises SyntaxError: "),
        ("leaves:x", "importing leaves raises SystemExit: 3"),
        (
            "own:number",
            "expected a mapping of names to factories, a function without arguments that returns one, or one",
        ),
        ("own:nothing", "the mapping is empty; give names and factories"),
        ("own:fails", "the function raises KeyError: 'card'"),
        ("own:returns", "expected a mapping of names to factories"),
        ("own:keys", "a form's name must be a text, got 1"),
        ("own:values", "'mine' must be a factory, a function of a CBAM, got a int"),
        ("own:taken", "there is a form 'ours compiled' already; give yours another name"),
        ("own:form own:form", "there is a form 'form' already; give yours another name"),
    ],
)
def test_a_bad_specification_is_one_line_and_exit_status_2(spec, message, tmp_path, monkeypatch, capsys):
    texts = {
        "own": "number = 3\nnothing = {}\nkeys = {1: print}\nvalues = {'mine': 3}\ntaken = {'ours compiled': print}\n"
        "def fails():\n    return {}['card']\ndef returns():\n    return 3\ndef form(layer):\n    return layer\n",
        "needs": "import nowhere_at_all",
        "broken": "def",
        "leaves": "raise SystemExit(3)",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "--with", *spec.split()]) == 2
    found = capsys.readouterr()
    assert message in found.err
    assert (found.out, found.err.count("\n")) == ("", 1)
    for name in texts:
        sys.modules.pop(name, None)


def test_specifications_are_refused_before_any_work(monkeypatch):
    with pytest.raises(InputError, match="--with"):
        own_forms.load(["nowhere_at_all:x"], ())
