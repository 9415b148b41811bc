"""`python -m cbam_triton train`: what it reaches as users run it, its network, its seeds, its errors."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from cbam_triton import settings
from cbam_triton.demo import command, options
from cbam_triton.demo import digits as train
from cbam_triton.demo.digits import Block, Digits, DigitsNet
from cbam_triton.kernels.launch import hardware as kernel_device

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("tqdm", "matplotlib", "sklearn")), reason="needs the demo extra"
)

CPU = torch.device("cpu")


class Steps:
    """A progress bar that counts."""

    def __init__(self):
        self.count = 0
        self.descriptions = []

    def set_description(self, desc):
        self.descriptions.append(desc)

    def update(self):
        self.count += 1


@pytest.fixture(scope="module")
def digits():
    return train.load_digits()


@pytest.fixture(scope="module")
def few(digits):
    """Two steps an epoch, and twenty digits to test."""
    count = 2 * train.BATCH + 5
    return Digits(*(part[:count] for part in digits[:2]), *(part[:20] for part in digits[2:]))


@pytest.fixture
def tiny(few, monkeypatch, tmp_path):
    """The command's arguments for a training of two steps, by the reference."""
    monkeypatch.setattr(train, "load_digits", lambda: few)
    with settings(backend="reference"):
        yield ["train", "--device", "cpu", "--epochs", "1", "--output", str(tmp_path / "report")]


def _fit(digits, seed):
    progress = Steps()
    with settings(backend="reference"), train.one_thread(CPU):
        net, last = train.fit(digits, CPU, progress, epochs=2, seed=seed)
    return net, last, progress


def _random_block(*sizes):
    torch.manual_seed(0)
    block = Block(*sizes).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block


def test_the_command_learns_the_digits_as_users_run_it(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command_line = [sys.executable, "-m", "cbam_triton", "train", "--epochs", "6", "--output", str(tmp_path)]
    found = subprocess.run(command_line, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    reached = re.search(r"^test +accuracy ([\d.]+)%, (\d+) of 450: above 97%$", found.stdout, re.MULTILINE)
    assert reached is not None, found.stdout
    assert float(reached[1]) > 97
    assert int(reached[2]) > 0.97 * 450
    assert re.search(r"^train +loss 0\.\d+, accuracy [\d.]+% in epoch 6$", found.stdout, re.MULTILINE)
    assert re.search(r"^auto +backend (reference|triton)", found.stdout, re.MULTILINE)
    if not torch.cuda.is_available():
        assert "interpreter:" not in found.stdout, "nothing was interpreted"
    assert (tmp_path / "digits.png").read_bytes()[:4] == b"\x89PNG"


def test_too_little_training_is_exit_status_1(tiny, tmp_path, capsys):
    assert command.main(tiny) == 1
    assert "NOT ABOVE 97%, try more --epochs" in capsys.readouterr().out
    assert (tmp_path / "report" / "digits.png").stat().st_size > 10_000


def test_the_accuracy_must_exceed_the_bar(tiny, monkeypatch):
    labels = train.load_digits().test_labels
    monkeypatch.setattr(train, "PASS", 0.95)
    monkeypatch.setattr(train, "predict", lambda *_: torch.where(torch.arange(20) < 19, labels, labels + 1))
    assert command.main(tiny) == 1, "19 of 20 is the bar, not above it"
    monkeypatch.setattr(train, "predict", lambda *_: labels)
    assert command.main(tiny) == 0


def test_a_seed_gives_the_same_bits_and_another_seed_others(few):
    torch.manual_seed(1)
    first, last, progress = _fit(few, 3)
    torch.manual_seed(2)
    second, again, _ = _fit(few, 3)
    other, _, _ = _fit(few, 4)
    assert last == again
    assert progress.count == 4
    assert [text.split(":")[0] for text in progress.descriptions] == ["epoch 1", "epoch 2"]
    states = first.state_dict(), second.state_dict(), other.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])
    assert not torch.equal(train._initialized(3).head.weight, train._initialized(4).head.weight)


def test_a_step_uses_the_gradient_of_its_own_batch_alone(few, monkeypatch):
    monkeypatch.setattr(train.F, "cross_entropy", lambda logits, labels: logits.mean(0).sum())
    net, _, progress = _fit(few, 0)
    assert progress.count > 1
    torch.testing.assert_close(net.head.bias.grad, torch.ones(train.CLASSES))


def test_training_changes_every_parameter_and_leaves_the_global_generator_alone(few):
    state = torch.get_rng_state()
    net, last, _ = _fit(few, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.training
    assert 0 < last.loss < 4
    fresh = train._initialized(0)
    for name, parameter in net.named_parameters():
        assert not torch.equal(parameter, dict(fresh.named_parameters())[name]), name


@pytest.mark.parametrize("sizes", [(6, 6, 1), (4, 6, 1), (4, 6, 2)])
def test_a_block_is_relu_of_the_refined_branch_plus_the_shortcut(sizes):
    block = _random_block(*sizes).eval()
    channels_in, channels, stride = sizes
    x = torch.randn(2, channels_in, 8, 8, dtype=torch.float64)
    with settings(backend="reference"), torch.no_grad():
        conv1, norm1, _, conv2, norm2 = block.branch
        branch = norm2(conv2(F.relu(norm1(conv1(x)))))
        channel = block.cbam.channel
        pooled = branch.mean((2, 3)), branch.amax((2, 3))
        g = torch.sigmoid(sum(channel.fc2(F.relu(channel.fc1(vector))) for vector in pooled))
        refined = branch * g[:, :, None, None]
        maps = torch.cat([refined.mean(1, keepdim=True), refined.amax(1, keepdim=True)], 1)
        s = torch.sigmoid(block.cbam.spatial.norm(block.cbam.spatial.conv(maps)))
        identity = x if sizes == (6, 6, 1) else block.shortcut[1](block.shortcut[0](x))
        y = block(x)
    assert y.shape == (2, channels, 8 // stride, 8 // stride)
    assert (y == 0).any()
    torch.testing.assert_close(y, F.relu(refined * s + identity))


def test_the_drawn_gates_are_those_that_the_blocks_apply(few):
    torch.manual_seed(0)
    net = DigitsNet().double().eval()
    x = few.test_images[:3].double()
    seen = []
    for block in net.blocks:
        block.cbam.register_forward_pre_hook(lambda module, inputs: seen.append((module, inputs[0])))
    with settings(backend="reference"), torch.no_grad():
        assert net(x).shape == (3, train.CLASSES)
        want = [module.attention_maps(features) for module, features in seen]
        got = net.attention_maps(x)
    assert len(got) == len(want) == len(train.STAGES)
    for found, expected, (channels, _) in zip(got, want, train.STAGES, strict=True):
        assert found.channel.shape == (3, channels)
        assert torch.equal(found.channel, expected.channel)
        assert torch.equal(found.spatial, expected.spatial)


def test_the_held_out_digits_are_a_fixed_share_of_every_class(digits):
    assert digits.train_images.shape == (1347, 1, 8, 8)
    assert digits.test_images.shape == (450, 1, 8, 8)
    assert all(part.min() == 0 and part.max() == 1 for part in (digits.train_images, digits.test_images))
    share = digits.test_labels.bincount() / (digits.train_labels.bincount() + digits.test_labels.bincount())
    assert ((share - train.TEST_SHARE).abs() < 0.01).all()
    assert torch.equal(digits.test_images, train.load_digits().test_images)
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    where = (torch.from_numpy(pixels).float() / 16 == digits.test_images[0].flatten()).all(1).nonzero().item()
    assert labels[where] == digits.test_labels[0]


def test_shifts_move_each_image_by_at_most_a_pixel_and_bring_in_zeros():
    x = torch.arange(1.0, 26).reshape(1, 1, 5, 5).expand(200, 1, 5, 5)
    y = train.shifted(x, torch.Generator().manual_seed(0))
    padded = F.pad(x[0, 0], (1, 1, 1, 1))
    windows = {(dy, dx): padded[dy : dy + 5, dx : dx + 5] for dy in range(3) for dx in range(3)}
    found = [[shift for shift, window in windows.items() if torch.equal(image[0], window)] for image in y]
    assert all(len(shifts) == 1 for shifts in found)
    assert {shifts[0] for shifts in found} == set(windows)


def test_the_picture_shows_wrong_digits_first_then_one_of_each_class(few, monkeypatch):
    drawn = {}
    monkeypatch.setattr(train.viz, "draw_digits", lambda *arguments: drawn.update(arguments=arguments))
    predicted = few.test_labels.clone()
    predicted[2:10] = (predicted[2:10] + 1) % 10
    net = DigitsNet().eval()
    with settings(backend="reference"):
        train.draw(net, few, predicted, "unused.png")
        images, labels, predictions, maps, _ = drawn["arguments"]
        assert [label == prediction for label, prediction in zip(labels, predictions, strict=True)][:6] == [
            False
        ] * 5 + [True]
        assert torch.equal(images[:5], few.test_images[2:7])
        assert len(set(labels[5:])) == len(labels[5:]) <= train.DRAWN - train.DRAWN_WRONG
        assert all(len(gates.channel) == len(gates.spatial) == len(images) for gates in maps)
        train.draw(net, few, few.test_labels, "unused.png")
    _, labels, predictions, _, _ = drawn["arguments"]
    assert labels == predictions == sorted(set(few.test_labels.tolist()))


def test_the_operators_that_run_are_observed_not_guessed(few):
    net = DigitsNet().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with settings(backend="reference"):
        assert train.operators(net, few.test_images[:2]) == (set(), set())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    if kernel_device.device_type() is None:
        pytest.skip("kernels do not run here")
    x = torch.ones(1, 2, 2, 2, device=kernel_device.device_type())
    with train._Operators() as seen, torch.no_grad():
        train.CBAM(2).to(x.device).eval()(x)
    assert {name.split("::")[0] for name in seen.names} == {"cbam_triton"}


def test_one_thread_is_for_the_cpu_and_for_a_while():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with train.one_thread(CPU):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with train.one_thread(torch.device("cuda")):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs is the number of passes over the digits, from 1 to 10000, got 0"),
        (["--seed", "-1"], "--seed is what random numbers begin with, from 0 to 9223372036854775807, got -1"),
        (["--seed", str(1 << 63)], "--seed is what random numbers begin with"),
        (["--device", "toaster"], "torch knows no device 'toaster'"),
        (["--output", __file__], "cannot make the folder"),
    ],
)
def test_bad_options_are_one_sentence_and_exit_status_2(tiny, arguments, message, capsys):
    assert command.main([*tiny, *arguments]) == 2
    found = capsys.readouterr()
    assert message in found.err
    assert found.err.count("\n") == 1
    assert found.out == ""


@pytest.mark.parametrize("arguments", [["--image", "a.jpg"], ["--dtype", "float16"], ["--batch", "2"]])
def test_options_of_the_check_are_refused_after_and_before_train(tiny, arguments, capsys):
    for line in ([*tiny, *arguments], [*arguments, *tiny]):
        with pytest.raises(SystemExit) as left:
            command.main(line)
        assert left.value.code == 2
        assert "unrecognized arguments" in capsys.readouterr().err


def test_a_missing_scikit_learn_names_the_command_that_installs_it(tiny, monkeypatch, capsys):
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None if name == "sklearn" else object())
    assert command.main(tiny) == 2
    found = capsys.readouterr().err
    assert "needs sklearn:" in found
    assert 'pip install "cbam-triton[demo]"' in found


def test_fewer_than_one_epoch_is_a_value_error(few):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        train.fit(few, CPU, Steps(), epochs=0, seed=0)
