"""The gates of every CBAM of a model, by name, in one forward."""

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, jit, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ..nn import CBAM
from ..settings import settings
from ..spec.observers import OBSERVERS

_COMPILED = "_orig_mod"  # how torch.compile names the module that it wraps


class Gates(NamedTuple):
    """What one CBAM multiplied its input with: `channel` (N, C) and `spatial` (N, 1, *pixels); None without that gate.

    They are detached, in the dtype in which they were computed, and on the model's device.
    """

    channel: Tensor | None
    spatial: Tensor | None


class Recording(Mapping[str, Gates]):
    """Gates by the name of the module that applied them, in the order of the model's last forward."""

    def __init__(self) -> None:
        self._found: dict[str, list[Tensor]] = {}

    def __getitem__(self, name: str) -> Gates:
        if name not in self._found:
            known = ", ".join(self._found) or "none: call the model in the block, after convert_cbam"
            raise KeyError(f"no gates of {name!r} were recorded; recorded: {known}")
        found = self._found[name]
        channel = next((gate for gate in found if gate.ndim == 2), None)
        return Gates(channel, next((gate for gate in found if gate.ndim > 2), None))

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __repr__(self) -> str:
        rows = [f"  {name}: {sizes(gates)}" for name, gates in self.items()]
        return "\n".join([f"{len(self)} recorded", *rows])

    def _forget(self, names: set[str]) -> None:
        self._found = {key: gates for key, gates in self._found.items() if key.partition("#")[0] not in names}

    def _add(self, name: str, gate: Tensor) -> None:
        """One more gate of this module; a second one of its kind begins another application, named `name#2`."""
        key, count = name, 1
        while any((gate.ndim == 2) == (other.ndim == 2) for other in self._found.get(key, ())):
            count += 1
            key = f"{name}#{count}"
        self._found.setdefault(key, []).append(gate)


class record:
    """Record the gates of every CBAM of `model` while it is called in the block: made here, converted or inserted.

    `with record(model) as gates` gives a `Recording`, which maps names of modules, as in `model.named_modules()`, to
    `Gates`: of a block that multiplies gates by itself, the block's name. A module that is called, or multiplies, more
    than once in a forward has `name#2` and so on. Each forward of the model begins the recording anew.
    In the block the layers run by the reference, and compiled code runs uncompiled (torch.compiler.set_stance), so a
    compiled model is recorded too; results differ by rounding. Only calls of the thread that entered count.

    Raises: TypeError for what is no module, or was compiled by TorchScript.

        with cbam_triton.viz.record(model) as gates:
            model(images)
        gates["layer1.0.cbam"].spatial  # (N, 1, H, W)
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module) or isinstance(model, jit.ScriptModule):
            raise TypeError(f"record takes a torch.nn.Module, not compiled by TorchScript, got {type(model).__name__}")
        self.model = model
        self.names = {module: _plain(name) for name, module in model.named_modules()}
        self._running: list[nn.Module] = []
        self._exits = ExitStack()

    def __enter__(self) -> Recording:
        self._gates, self._thread = Recording(), threading.get_ident()
        with ExitStack() as exits:
            exits.enter_context(settings(backend="reference"))
            exits.enter_context(torch.compiler.set_stance("force_eager"))
            if any(name.endswith(_COMPILED) for name, _ in self.model.named_modules()):
                exits.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", "Using `torch.compile")  # on hooks that it calls once more
            # Hooks on the modules themselves would make them run otherwise than they do without.
            exits.callback(register_module_forward_pre_hook(self._enter_module).remove)
            exits.callback(register_module_forward_hook(self._leave_module, always_call=True).remove)
            OBSERVERS.append(self._observe)
            exits.callback(OBSERVERS.remove, self._observe)
            self._exits = exits.pop_all()
        return self._gates

    def __exit__(self, *error: Any) -> None:
        self._exits.close()
        self._running.clear()

    def _enter_module(self, module: nn.Module, inputs: Any) -> None:
        if module in self.names and threading.get_ident() == self._thread:
            if not self._running:
                self._gates._forget({self.names[part] for part in module.modules()})
            self._running.append(module)

    def _leave_module(self, module: nn.Module, inputs: Any, result: Any) -> None:
        if self._running and self._running[-1] is module and threading.get_ident() == self._thread:
            self._running.pop()

    def _observe(self, gate: Tensor) -> None:
        if not self._running or threading.get_ident() != self._thread:
            return
        owner = self._running[-1]
        whole = next((module for module in self._running if isinstance(module, CBAM) and _holds(module, owner)), owner)
        self._gates._add(self.names[whole], gate.detach())


def sizes(gates: Gates) -> str:
    """Shapes in words."""
    words = [f"{kind} {tuple(gate.shape)}" for kind, gate in zip(gates._fields, gates, strict=True) if gate is not None]
    return ", ".join(words)


def _holds(layer: nn.Module, part: nn.Module) -> bool:
    return any(module is part for module in layer.modules())


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _COMPILED)
