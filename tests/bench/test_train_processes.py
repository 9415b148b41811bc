"""`torchrun -m bench train`: each image is measured once, and processes that were killed go on to the same bits."""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cbam_triton import settings

from . import data_sets
from .test_train import SMALL, assert_same_state, log, saved, train

pytest.importorskip("torchvision")
pytest.importorskip("tqdm")

from bench.train import command, models
from bench.train.classification import Classification
from bench.train.processes import Processes

ROOT = Path(__file__).resolve().parents[2]


def namespace(folder, **options):
    """The options that a `Classification` reads."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    got = parser.parse_args(["classification", str(folder), *SMALL])
    vars(got).update(options)
    return got


def test_top_1_and_top_5_count_every_image_once(tmp_path):
    class Ranks(nn.Module):
        """The true class of an image comes third, and for the last one first."""

        def forward(self, images):
            left = images[..., :16].mean((1, 2, 3)) > images[..., 16:].mean((1, 2, 3))
            return torch.stack([~left, left, torch.ones_like(left)], 1) * torch.tensor([1.0, 1.0, 2.0])

    arguments = namespace(data_sets.image_folder(tmp_path), batch=2, model="resnet18", attention="none")
    counted = [0, 0]
    for rank in range(2):
        alone = Processes(rank, 2, torch.device("cpu"))
        task = Classification(arguments, alone)
        assert len(task.held_out.dataset) == 2 - rank
        got = task.measure(Ranks(), alone._replace(count=1))
        counted[0] += got["top1"] * (2 - rank)
        counted[1] += got["top5"] * (2 - rank)
    assert counted == [0, 3]


def test_statistics_are_those_of_the_first_process_before_they_are_measured_and_saved(tmp_path, monkeypatch):
    def broadcast(buffer, source):
        assert source == 0
        buffer.fill_(7)  # as if the first process had sent this

    share, measured = Processes.share_buffers, []

    def measure(task, model, processes):
        measured.append({buffer.float().mean().item() for buffer in model.buffers()})
        return {}

    monkeypatch.setattr(dist, "broadcast", broadcast)
    monkeypatch.setattr(Processes, "share_buffers", lambda here, *modules: share(here._replace(count=2), *modules))
    monkeypatch.setattr(Classification, "measure", measure)
    folder = data_sets.image_folder(tmp_path / "images")
    assert train(folder, tmp_path, "--epochs", "1", "--ema", "0.5") == 0
    assert measured == [{7}, {7}]
    state = saved(tmp_path)
    names = [name for name in state["model"] if name.endswith("running_var")]
    assert names
    for name in names:
        assert (state["model"][name] == 7).all()
        assert (state["average"][f"module.{name}"] == 7).all()


def torchrun(folder, out, *options):
    """Two processes on one machine, as torchrun starts them; their group can be killed as one."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bench"]
    command += ["train", "classification", str(folder), "--out", str(out), *SMALL, *options]
    environment = os.environ | {"CBAM_TRITON_BACKEND": "reference", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)


@pytest.mark.slow
@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this PyTorch has no gloo")
@pytest.mark.skipif(os.name == "nt", reason="kills a group of processes")
def test_two_processes_that_were_killed_and_resumed_end_where_uninterrupted_ones_do(tmp_path):
    folder = data_sets.image_folder(tmp_path / "images", train=64, held_out=41)
    options = ["--model", "resnet18", "--epochs", "3", "--ema", "0.9", "--workers", "1", "--device", "cpu"]
    assert torchrun(folder, tmp_path / "whole", *options).wait(600) == 0
    killed = torchrun(folder, tmp_path / "killed", *options)
    written = tmp_path / "killed" / "checkpoint.pt"
    while not written.exists() and killed.poll() is None:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(60)
    assert 1 <= len(saved(tmp_path / "killed")["history"]) < 3
    assert torchrun(folder, tmp_path / "killed", *options).wait(600) == 0
    assert_same_state(saved(tmp_path / "killed"), saved(tmp_path / "whole"))
    states = saved(tmp_path / "whole")["random"]
    assert not torch.equal(states[0]["torch"], states[1]["torch"])  # of two processes
    # Both measured with the statistics that were saved: one process finds the same parts, of images and of the average.
    arguments = namespace(folder, model="resnet18")
    task = Classification(arguments, Processes(0, 1, torch.device("cpu")))
    state, line = saved(tmp_path / "whole"), log(tmp_path / "whole")[-1]
    task.model = models.classifier(arguments, 2)
    for prefix, part in (("", "model"), ("ema_", "average")):
        values = {name.removeprefix("module."): value for name, value in state[part].items() if name != "n_averaged"}
        task.model.load_state_dict(values)
        with torch.no_grad(), settings(backend="reference"):
            measured = task.measure(task.model.eval(), Processes(0, 1, torch.device("cpu")))
        assert {f"{prefix}{name}": value for name, value in measured.items()}.items() <= line.items()
