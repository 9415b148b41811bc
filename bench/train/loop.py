"""Training, whatever the task: one process or several, autocast, averages, a checkpoint and a line of log an epoch."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, DistributedSampler

from cbam_triton.demo.options import InputError

from . import checkpoint
from .processes import Processes

# What a run may change when it goes on: not what it computes, or, for NOTED, its bits alone.
_FREE = {"command", "task", "data", "out", "epochs", "device"}
_NOTED = {"--workers", "torch"}


class Task(Protocol):
    """What is trained: the network, the batches of an epoch, the loss of a batch, and how well it does."""

    model: nn.Module
    loader: DataLoader[Any]
    sampler: DistributedSampler[Any]
    facts: dict[str, Any]  # of the data: a run only goes on with the same

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of a batch of the loader."""
        ...

    def measure(self, model: nn.Module, processes: Processes) -> dict[str, float]:
        """Measures of `model` in eval mode on all held-out data, the same in every process."""
        ...


class Run:
    """A network on its way: what changes from epoch to epoch, and is saved."""

    def __init__(self, task: Task, arguments: argparse.Namespace, processes: Processes) -> None:
        self.task, self.arguments, self.processes = task, arguments, processes
        self.path = Path(arguments.out) / "checkpoint.pt"
        self.model = prepared(task.model, arguments, processes)
        ema = None if arguments.ema is None else get_ema_multi_avg_fn(arguments.ema)
        # Averaged statistics go with averaged weights: use_buffers.
        self.average = AveragedModel(self.model, multi_avg_fn=ema, use_buffers=True) if ema else None
        self.optimizer = torch.optim.SGD(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            arguments.lr, momentum=arguments.momentum, weight_decay=arguments.weight_decay,
        )  # fmt: skip
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=arguments.amp == "float16")
        self.history: list[dict[str, float]] = []
        self.config = configuration(arguments, processes) | task.facts
        checkpoint.seed(arguments.seed + 1 + processes.rank)  # processes draw other crops and flips
        self._resume()
        self.wrapped = wrapped(self.model, arguments, processes)

    def fit(self) -> None:
        """Train the epochs that are left."""
        if len(self.history) >= self.arguments.epochs:
            self._say(f"All {len(self.history)} epochs are done: {self.path}")
        for epoch in range(len(self.history), self.arguments.epochs):
            begin, rate = time.perf_counter(), learning_rate(self.arguments, epoch, epoch * len(self.task.loader))
            loss = self._train(epoch)
            seconds = time.perf_counter() - begin
            self.processes.share_buffers(self.model, self.average)
            line: dict[str, Any] = {"epoch": epoch + 1, "lr": rate, "loss": loss, "train_seconds": seconds}
            line |= self._measures(self.model)
            if self.average is not None:
                line |= {f"ema_{name}": value for name, value in self._measures(self.average.module).items()}
            self.history.append(line)
            self._save()
            self._say("  ".join(f"{name} {value:.5g}" for name, value in line.items()))

    def _train(self, epoch: int) -> float:
        """One pass over the data; the mean loss.

        Raises: InputError where the loss is not finite, before anything is saved.
        """
        from tqdm import tqdm

        arguments, device = self.arguments, self.processes.device
        self.task.sampler.set_epoch(epoch)
        self.wrapped.train()
        total = torch.zeros((), device=device)
        name = f"epoch {epoch + 1} of {arguments.epochs}"
        bar = tqdm(self.task.loader, name, unit="batch", leave=False, disable=None if self.processes.first else True)
        for step, batch in enumerate(bar, epoch * len(self.task.loader)):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(arguments, epoch, step)
            with autocast(arguments, device):
                loss = self.task.loss(self.wrapped, batch)
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.average is not None:
                self.average.update_parameters(self.model)
            total += loss.detach()
        mean = self.processes.total(total).item() / (len(self.task.loader) * self.processes.count)
        if not math.isfinite(mean):
            raise InputError(
                f"the loss of epoch {epoch + 1} is {mean}: give a smaller --lr, a longer --warmup or no --amp"
            )
        return mean

    def _measures(self, model: nn.Module) -> dict[str, float]:
        model.eval()
        with torch.no_grad(), autocast(self.arguments, self.processes.device):
            return self.task.measure(model, self.processes)

    def _save(self) -> None:
        states = self.processes.gathered(checkpoint.random_states(self.processes.device))
        if self.processes.first:
            parts = {name: part.state_dict() for name, part in self._parts().items()}
            checkpoint.write(self.path, parts | {"history": self.history, "config": self.config, "random": states})
            self._write_log()

    def _resume(self) -> None:
        state = checkpoint.read(self.path, "--out") if self.path.exists() else None
        if len(set(self.processes.gathered(state and len(state.get("history", ()))))) > 1:
            raise InputError(f"the processes see different files {self.path}: give an --out that all of them share")
        if state is None:
            return
        self._check(state)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.history = state["history"]
        checkpoint.restore_random_states(state["random"][self.processes.rank], self.processes.device)
        if self.processes.first:
            self._write_log()  # which a kill may have left an epoch behind
        self._say(f"Goes on after epoch {len(self.history)} of {self.path}.")

    def _check(self, state: dict[str, Any]) -> None:
        if not {"history", "config", "random", *self._parts()} <= state.keys():
            raise InputError(f"--out: {self.path} is not a checkpoint of this command: give another folder")
        hard = checkpoint.differences(*({k: c[k] for k in c.keys() - _NOTED} for c in (state["config"], self.config)))
        if hard:
            raise InputError(f"{self.path} is of another run: {'; '.join(hard)}. Give its options, or another --out")
        for difference in checkpoint.differences(state["config"], self.config):
            self._say(f"Not bit for bit what an uninterrupted run gives: {difference}")

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        return parts if self.average is None else parts | {"average": self.average}

    def _write_log(self) -> None:
        lines = (json.dumps(line) + "\n" for line in self.history)
        checkpoint.write_text(self.path.with_name("log.jsonl"), "".join(lines))

    def _say(self, words: str) -> None:
        if self.processes.first:
            print(words, flush=True)


def learning_rate(arguments: argparse.Namespace, epoch: int, step: int) -> float:
    """The rate of a step, counted from 0 over all epochs: a linear warm-up, a drop after each of `--drops` epochs.

    It depends on nothing else, so that no checkpoint has to keep it.
    """
    warm = min(1.0, (step + 1) / arguments.warmup) if arguments.warmup else 1.0
    return arguments.lr * warm * arguments.factor ** sum(epoch >= drop for drop in arguments.drops)


def prepared(model: nn.Module, arguments: argparse.Namespace, processes: Processes) -> nn.Module:
    """The network on its device, in its layout, with norms over all processes if asked for."""
    if arguments.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(processes.device)
    return model.to(memory_format=torch.channels_last) if arguments.channels_last else model


def wrapped(model: nn.Module, arguments: argparse.Namespace, processes: Processes) -> nn.Module:
    """What training calls: the network, or its wrapper that adds up gradients; compiled in place if asked for."""
    device = processes.device
    if processes.count > 1:
        model = DistributedDataParallel(model, device_ids=None if device.type == "cpu" else [device.index])
    if arguments.compile:
        model.compile()
    return model


def autocast(arguments: argparse.Namespace, device: torch.device) -> torch.autocast:
    """The context of a forward under `--amp`."""
    dtype = getattr(torch, arguments.amp) if arguments.amp else None
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def configuration(arguments: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    """What makes two runs the same, by the names of the options."""
    config: dict[str, Any] = {
        f"--{name.replace('_', '-')}": str(value) if isinstance(value, Path) else value
        for name, value in vars(arguments).items()
        if name not in _FREE
    }
    config["task"] = arguments.task
    return config | {"--device": processes.device.type, "processes": processes.count, "torch": str(torch.__version__)}
