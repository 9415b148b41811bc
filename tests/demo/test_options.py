"""What the commands cannot do: exit status 2 and one line, before any work."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from cbam_triton.demo import check, command, options

Image = pytest.importorskip("PIL.Image")

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("tqdm", "matplotlib", "PIL", "sklearn")), reason="needs the demo extra"
)


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys):
    """Runs the command, which does not come to its work, and returns the one line that it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "check_photograph", None)

    def run(*words):
        try:
            status = command.main(words)
        except SystemExit as left:
            status = left.code
        found = capsys.readouterr()
        assert (status, found.out) == (2, "")
        assert found.err.count("\n") == 1
        return found.err

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "none.jpg"], "there is no file 'none.jpg'"),
        (["--image", "."], "there is no file '.'"),
        (["--image", "a" * 5000], "File name too long"),
        (["--image", "a\0b"], "--image: "),
        (["--dtype", "int8"], "'int8' is not one of float16"),
        (["--device", "toaster"], "torch knows no device 'toaster'"),
        (["--device", "meta"], "sees no meta device; try --device cpu"),
        (["--device", "cuda:99"], "--device cuda:99: "),
        (["--batch", "0"], "--batch is the number of views, from 1 to 1024, got 0"),
        (["--batch", "-3"], "from 1 to 1024, got -3"),
        (["--batch", "many"], "argument --batch: invalid int value: 'many'"),
        (["--output", __file__], "cannot make the folder"),
        (["--output", "a\0b"], "cannot make the folder 'a\\x00b' (embedded null byte)"),
        (["--output", "a" * 5000], "(File name too long)"),
        (["--output", "taken"], "cannot write 'taken/report.txt' (Is a directory)"),
        (["--picture"], "unrecognized arguments: --picture"),
        (["see", "no_such_file.pt", "none.jpg"], "there is no file 'none.jpg'"),
        (["see", "no_such_file.pt", "there.png"], "there is no file 'no_such_file.pt'; give module:callable"),
        (["see", "there.png", "there.png"], "'there.png' is no file of torch.save, or holds code"),
        (["see", "no_such_module:net", "there.png"], "gives no model (ModuleNotFoundError: No module named"),
        (["see", "torch:rand", "there.png"], "gives no model (TypeError: rand() received"),
        (["see", "torch.nn:Identity", "there.png"], "MODEL has no CBAM that convert_cbam knows"),
        (["see", "torch:get_num_threads", "there.png"], "returns a int; give a callable that returns a module"),
        (["info", "--everything"], "unrecognized arguments"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_the_work(refused, tmp_path, arguments, message):
    (tmp_path / "taken" / "report.txt").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "there.png")
    assert message in refused(*arguments)


@pytest.mark.parametrize("contents", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_a_file_that_is_no_picture_is_an_error(refused, tmp_path, contents):
    (tmp_path / "text.jpg").write_bytes(contents)
    assert "'text.jpg' cannot be read as an image" in refused("--image", "text.jpg")


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "tiff", "webp"])
def test_a_picture_that_ends_early_is_an_error(refused, tmp_path, kind):
    path = tmp_path / f"picture.{kind}"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"'picture.{kind}' cannot be read as an image" in refused("--image", path.name)


def test_a_picture_of_more_pixels_than_memory_is_an_error(refused, tmp_path, monkeypatch):
    Image.new("1", (40, 40)).save(tmp_path / "large.png")
    for limit in (1000, 100):  # a warning of Pillow's, and an error
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert "'large.png' cannot be read as an image" in refused("--image", "large.png")


def test_a_folder_that_cannot_be_written_is_an_error(refused, monkeypatch, tmp_path):
    def refuse(path, mode="r", **options):
        if mode == "ab":
            raise PermissionError(13, "Permission denied", str(path))
        return right(path, mode, **options)

    right = options.Path.open
    monkeypatch.setattr(options.Path, "open", refuse)
    assert "--output: cannot write 'report/report.txt' (Permission denied)" in refused("--output", "report")


def test_asking_whether_a_file_can_be_written_leaves_it_as_it_is(tmp_path):
    (tmp_path / "old.txt").write_text("kept")
    assert options.folder_of(str(tmp_path), ("old.txt", "new.txt")) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["old.txt"]
    assert (tmp_path / "old.txt").read_text() == "kept"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_gpu_is_an_error(refused):
    assert "sees no cuda device; try --device cpu" in refused("--device", "cuda")


@pytest.mark.parametrize("seconds", ["nan", "-1", "inf"])
def test_a_time_that_is_none_is_an_error(seconds, refused):
    assert f"--compile-seconds is time for torch.compile, from 0 to 86400, got {float(seconds)}" in refused(
        "--compile-seconds", seconds
    )


def test_a_missing_extra_names_the_command_that_installs_it(refused, monkeypatch):
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None)
    assert 'pip install "cbam-triton[demo]"' in refused()


@pytest.mark.parametrize("command_line", [["--help"], ["--device", "toaster"], ["info"]])
def test_the_command_runs_without_docstrings_and_asserts(command_line):
    line = [sys.executable, "-OO", "-m", "cbam_triton", *command_line]
    found = subprocess.run(line, capture_output=True, text=True, check=False)
    assert found.returncode == (2 if "toaster" in command_line else 0), found.stderr
    assert found.stderr.count("\n") == (1 if "toaster" in command_line else 0)
