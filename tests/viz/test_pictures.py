"""Statistics, pictures and Grad-CAM."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from cbam_triton import CBAM, ChannelAttention, viz
from cbam_triton.demo import command

C = 16


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, C, 3, padding=1), CBAM(C, 4), ChannelAttention(C)).eval()


def test_statistics_are_those_of_all_gates_together(model):
    images = torch.rand(6, 3, 8, 8)
    with torch.no_grad(), viz.record(model) as gates:
        model(images)
    found = viz.statistics(model, [(images[:4], None), images[4:]])
    assert list(found) == ["1", "2"]
    channel, spatial = (gate.double() for gate in gates["1"])
    expected = channel.mean(0), channel.std(0, correction=0), spatial.mean(), spatial.std(correction=0)
    for one, other in zip(found["1"][1:], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert found["2"].samples == 6
    assert found["2"].spatial_mean is found["2"].spatial_std is None


def test_statistics_of_nothing_are_an_error(model):
    for network, batches in ((model, []), (nn.ReLU(), [torch.rand(1, 3, 2, 2)])):
        with pytest.raises(ValueError, match="no gates were applied"):
            viz.statistics(network, batches)


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")
class TestPictures:
    def test_an_overlay_has_the_images_size_and_its_brightest_pixel_where_the_gate_is(self):
        gate = torch.zeros(4, 4)
        gate[1, 2] = 1
        found = viz.overlay(torch.full((3, 16, 16), 0.5), gate)
        assert found.shape == (16, 16, 3)
        assert 0 <= found.min() <= found.max() <= 1
        row, column = divmod(int(found.sum(2).argmax()), 16)
        assert (row // 4, column // 4) == (1, 2)
        assert viz.overlay(torch.zeros(1, 4, 4), torch.full((2, 2), 0.7)).shape == (4, 4, 3)

    def test_a_strip_holds_every_channel_once(self):
        found = torch.from_numpy(viz.channel_strip(torch.arange(19.0)))
        assert found.shape == (8, 3)
        assert found.flatten()[:19].tolist() == list(range(19))
        assert found.flatten()[19:].isnan().all()

    def test_draw_writes_a_picture(self, model, tmp_path):
        images = torch.rand(2, 3, 8, 8)
        with torch.no_grad(), viz.record(model) as gates:
            model(images)
        for name, layers in (("all.png", None), ("one.png", ["1"])):
            viz.draw(images, gates, tmp_path / name, layers=layers)
            assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
        for wrong in (images[:1], images[0], images[:, :2], "images"):
            with pytest.raises(ValueError, match=r"must (have shape|be of)"):
                viz.draw(wrong, gates, tmp_path / "wrong.png")
        assert not (tmp_path / "wrong.png").exists()

    def test_the_command_draws_a_model_of_a_file(self, model, tmp_path, monkeypatch, capsys):
        image = pytest.importorskip("PIL.Image")
        monkeypatch.chdir(tmp_path)
        torch.save(model, "model.pt")
        torch.save(model.state_dict(), "state.pt")
        image.effect_noise((20, 12), 50).convert("RGB").save("a.png")
        words = ["see", "model.pt", "a.png", "a.png", "--size", "8", "--device", "cpu"]
        assert command.main([*words, "--trust", "--layers", "1"]) == 0
        assert capsys.readouterr().out.startswith("1: channel 0.")
        assert (tmp_path / "cbam_report" / "gates.png").read_bytes()[:4] == b"\x89PNG"
        for wrong, message in (
            (words, "holds code; if you trust it: --trust"),
            ([*words, "--trust", "--layers", "9"], "has no CBAM '9'; it has 1, 2"),
            (["see", "state.pt", *words[2:]], "holds a OrderedDict, not a module"),
        ):
            assert command.main(wrong) == 2
            found = capsys.readouterr()
            assert message in found.err
            assert found.err.count("\n") == 1


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")
class TestComparison:
    @pytest.fixture
    def networks(self):
        torch.manual_seed(0)
        tail = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, 5)
        plain = nn.Sequential(nn.Conv2d(3, C, 3), nn.ReLU(), *tail)
        return {"plain": plain, "+ CBAM": nn.Sequential(plain[0], CBAM(C, 4), *tail).train()}

    @pytest.fixture
    def asked(self, monkeypatch):
        """What Grad-CAM is asked, without its package."""
        calls = []

        def cam(model, images, layer, *, targets, method):
            assert not any(module.training for module in model.modules())
            calls.append((model, layer, targets, method))
            return torch.rand(len(images), *images.shape[2:])

        monkeypatch.setattr(viz.comparison, "grad_cam", cam)
        return calls

    def test_the_scores_are_those_of_the_true_classes_in_eval_mode(self, networks, asked, tmp_path):
        images, targets = torch.randn(3, 3, 9, 9), [4, 0, 2]
        layers = {"plain": "0", "+ CBAM": "1"}
        pictures = torch.rand(3, 1, 18, 18)
        found = viz.compare(networks, images, targets, tmp_path / "f.png", layer=layers, pictures=pictures)
        assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"
        assert [(call[0], *call[1:]) for call in asked] == [
            (networks["plain"], "0", targets, "GradCAM"), (networks["+ CBAM"], "1", targets, "GradCAM"),
        ]  # fmt: skip
        assert all(net.training for net in networks.values())
        for row, net in zip(found, networks.values(), strict=True):
            with torch.no_grad():
                logits = net.eval()(images).double()
            for score, target, logit in zip(row, targets, logits, strict=True):
                torch.testing.assert_close(score, (logit[target] - logit.logsumexp(0)).exp())

    def test_what_cannot_be_drawn_is_an_error_before_the_picture(self, networks, asked, tmp_path):
        images = torch.randn(2, 3, 9, 9)
        for message, models, given, targets, pictures in (
            ("models must be networks by name", {}, images, [0, 1], None),
            (r"images must have shape .*got \(3, 9, 9\)", networks, images[0], [0, 1], images),
            ("pictures must have shape .*got list", networks, images, [0, 1], [1]),
            ("as many, got 2, 2 and 1", networks, images, [0], None),
            (r"classes of the logits \(2, 5\), got \[0, 5\]", networks, images, [0, 5], None),
        ):
            with pytest.raises(ValueError, match=message):
                viz.compare(models, given, targets, tmp_path / "f.png", layer="0", pictures=pictures)
        assert not list(tmp_path.iterdir())
        assert asked == []


@pytest.mark.skipif(find_spec("pytorch_grad_cam") is None, reason="needs grad-cam")
@pytest.mark.filterwarnings("ignore")  # the package's own
def test_grad_cam_is_a_map_of_each_image():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, C, 3), CBAM(C, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, 5)
    ).eval()
    images = torch.rand(2, 3, 16, 16)
    for method in ("GradCAM", "GradCAMPlusPlus"):
        found = viz.grad_cam(network, images, "1", targets=[0, 4], method=method)
        assert found.shape == (2, 16, 16)
        assert 0 <= found.min() <= found.max() <= 1
    with pytest.raises(ValueError, match="method must be a class of pytorch_grad_cam, got 'NoCAM'"):
        viz.grad_cam(network, images, "1", method="NoCAM")


def test_a_missing_grad_cam_is_named(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pytorch_grad_cam", None)
    with pytest.raises(ImportError, match=r"grad_cam needs the package grad-cam: pip install"):
        viz.grad_cam(model, torch.rand(1, 3, 8, 8), "1")


def test_wrong_arguments_are_named():
    model = nn.Sequential(CBAM(8))
    with pytest.raises(TypeError, match=r"gate must be a torch\.Tensor, got the string"):
        viz.channel_strip("gate")
    with pytest.raises(ValueError, match=r"gate must have shape \(C,\), got \(2, 8\)"):
        viz.channel_strip(torch.zeros(2, 8))
    for batches in ("images", torch.zeros(3), [None]):
        with pytest.raises(TypeError, match=r"batches must hold tensors \(N, C, \*pixels\)"):
            viz.statistics(model, batches)
