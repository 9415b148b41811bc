"""The comparison forms compute what the module computes; the benchmark checks before it times."""

import csv
import subprocess
import sys

import pytest
import torch

from bench import contenders
from bench.__main__ import main
from cbam_triton import CBAM, settings
from cbam_triton.testing.published import jongchan_like, timm_like

TINY = ["--shapes", "2x24x7x5", "--device", "cpu", "--no-compile", "--seconds", "0"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """A machine without noise: whether a row has a ratio is no matter of luck."""
    timed = contenders.interleaved

    def without_noise(*given, **options):
        return {name: one._replace(spread=0.0) for name, one in timed(*given, **options).items()}

    monkeypatch.setattr(contenders, "interleaved", without_noise)


def random_layer(**options):
    torch.manual_seed(0)
    layer = CBAM(24, dtype=torch.float64, **options).eval()
    for value in layer.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.2, 0.8)
    return layer


@pytest.mark.parametrize("like", [jongchan_like, timm_like])
@pytest.mark.parametrize(
    "options", [{}, {"reduction": 4}, {"hidden_channels": 5}, {"kernel_size": 3}, {"mlp_bias": False}]
)
def test_published_forms_agree_with_the_module_in_float64(like, options):
    layer = random_layer(**options)
    x = torch.randn(3, 24, 6, 9, dtype=torch.float64).relu()
    with torch.no_grad(), settings(backend="reference"):
        torch.testing.assert_close(like(layer)(x), layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("like", [jongchan_like, timm_like])
def test_published_forms_train_as_the_module_does(like):
    layer = random_layer().train()
    form = like(layer)
    x = torch.randn(3, 24, 6, 9, dtype=torch.float64)
    form.norm.momentum = layer.spatial.norm.momentum
    torch.testing.assert_close(form(x), layer(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(form.norm.running_var, layer.spatial.norm.running_var, rtol=0, atol=1e-12)


def test_a_layer_that_has_no_published_form_is_refused():
    with pytest.raises(ValueError, match="batch norm"):
        timm_like(CBAM(16, spatial_norm=None))


def test_run_writes_a_csv_and_plot_draws_it(tmp_path, capsys):
    out = tmp_path / "folder" / "results.csv"
    assert main(["run", *TINY, "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert {row["layout"] for row in rows} == {"nchw", "channels_last"}
    assert {"published", "timm", "ours"} <= {row["form"] for row in rows}
    for row in rows:
        assert (row["n"], row["c"], row["h"], row["w"], row["dtype"]) == ("2", "24", "7", "5", "float32")
        assert row["pass"] == "forward"
        assert float(row["median_us"]) > 0
        assert row["device"]
        assert row["torch"] == torch.__version__
        assert not row["note"]
        ratio = {"published": "over_published", "timm": "over_timm"}.get(row["form"])
        assert ratio is None or float(row[ratio]) == 1
    assert "ours" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    picture = tmp_path / "picture.png"
    assert main(["plot", str(out), "--out", str(picture)]) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_wrong_form_gets_no_time(monkeypatch, tmp_path):
    def wrong_like(layer):
        form = timm_like(layer)
        form.conv.weight.data.neg_()
        return form

    monkeypatch.setattr(contenders, "timm_like", wrong_like)
    out = tmp_path / "results.csv"
    assert main(["run", *TINY, "--out", str(out)]) == 0
    rows = {row["form"]: row for row in csv.DictReader(out.read_text().splitlines())}
    assert rows["timm"]["note"] == "wrong"
    assert rows["timm"]["median_us"] == ""
    assert rows["ours"]["over_timm"] == ""
    assert rows["ours"]["over_published"]


def test_a_wrong_result_of_ours_fails_the_run(monkeypatch, tmp_path):
    right = contenders.contenders
    monkeypatch.setattr(contenders, "contenders", lambda *given: right(*given) | {"ours": lambda x: x * 0.5})
    assert main(["run", *TINY, "--out", str(tmp_path / "results.csv")]) == 1


def test_run_times_the_backward_pass_too(tmp_path):
    forward, both, merged = (tmp_path / f"{name}.csv" for name in ("forward", "both", "merged"))
    assert main(["run", *TINY, "--out", str(forward)]) == 0
    assert main(["run", *TINY, "--backward", "--dtype", "float32", "bfloat16", "--out", str(both)]) == 0
    rows = list(csv.DictReader(both.read_text().splitlines()))
    assert {row["pass"] for row in rows} == {"forward+backward"}
    assert {(row["form"], row["dtype"]) for row in rows} >= {("ours", "bfloat16"), ("timm", "float32")}
    for row in rows:
        assert not row["note"]
        assert float(row["median_us"]) > 0
        assert 0 < float(row["error_over_eager"]) <= 2
    pytest.importorskip("matplotlib")
    merged.write_text(forward.read_text() + "".join(both.read_text().splitlines(keepends=True)[1:]))
    assert main(["plot", str(merged)]) == 0
    assert merged.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("wrong", ["x", "bias"])
def test_a_wrong_gradient_of_ours_fails_the_run(monkeypatch, tmp_path, wrong):
    def with_a_fault(layer, with_compile):
        ours = contenders.with_settings(layer, backend="reference")
        if wrong == "x":
            return right(layer, with_compile) | {"ours": lambda x: ours(x.detach() + 0.5 * (x - x.detach()))}
        layer.channel.fc2.bias.register_hook(lambda gradient: gradient / 2)
        return right(layer, with_compile) | {"ours": ours}

    right = contenders.contenders
    monkeypatch.setattr(contenders, "contenders", with_a_fault)
    out = tmp_path / "results.csv"
    assert main(["run", *TINY, "--layout", "nchw", "--out", str(out)]) == 0
    assert main(["run", *TINY, "--layout", "nchw", "--backward", "--out", str(out)]) == 1
    rows = {row["form"]: row for row in csv.DictReader(out.read_text().splitlines())}
    assert rows["ours"]["note"] == "wrong"
    assert rows["ours"]["median_us"] == ""
    assert rows["timm"]["median_us"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["run", "--shapes", "3x4"], "bench run: error: --shapes: '3x4' is neither resnet50"),
        (["run", "--device", "toaster"], "bench run: error: --device: torch knows no device 'toaster'"),
        (["run", "--batch", "-3"], "bench run: error: --batch is the number of samples, from 1 to "),
        (["run", "--out", "taken"], "bench run: error: --out: cannot write 'taken' (Is a directory)"),
        (["run", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["host", "--shape", "3x4"], "bench host: error: --shapes: '3x4' is neither"),
        (["plot", "none.csv"], "there is no none.csv; `python -m bench run` writes it"),
        (["plot", "empty.csv"], "bench plot: error: empty.csv holds no time"),
        (["paint"], "argument command: invalid choice: 'paint'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_status_2(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "empty.csv").write_text("")
    try:
        status = main(words)
    except SystemExit as left:
        status = left.code
    found = capsys.readouterr()
    assert (status, found.out) == (2, "")
    assert message in found.err
    assert found.err.count("\n") == 1


def test_help_needs_no_docstrings():
    line = [sys.executable, "-OO", "-m", "bench", "run", "--help"]
    found = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert "against the published form" in " ".join(found.stdout.split())


@pytest.mark.slow
def test_run_times_torch_compile_too(tmp_path):
    out = tmp_path / "results.csv"
    assert main(["run", *[word for word in TINY if word != "--no-compile"], "--layout", "nchw", "--out", str(out)]) == 0
    rows = {row["form"]: row for row in csv.DictReader(out.read_text().splitlines())}
    assert rows["timm compiled"]["over_timm_compiled"] == "1.000"
    assert float(rows["ours compiled"]["median_us"]) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # Inductor's own
def test_no_time_for_the_nan_gradient_of_a_compiled_amax(tmp_path):
    out = tmp_path / "results.csv"
    words = [word for word in TINY if word != "--no-compile"]
    assert main(["run", *words, "--backward", "--dtype", "float16", "--layout", "nchw", "--out", str(out)]) == 0
    rows = {row["form"]: row for row in csv.DictReader(out.read_text().splitlines())}
    assert rows["timm compiled"]["note"] == "wrong"
    assert rows["timm compiled"]["error_over_eager"] == "inf"
    assert float(rows["ours compiled"]["median_us"]) > 0
