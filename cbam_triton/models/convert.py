"""CBAM in a model that others wrote, run by the kernels in place: `convert_cbam`, undone by `restore_cbam`.

A converted module keeps its class, children, parameters and keys; only its `forward` becomes an attribute of its own.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import jit, nn

from ..kernels.launch import hardware
from ..spec.values import check_bool
from .apply_cbam import Converted, described, run_module
from .block_gates import paired
from .block_rewrite import run_program, runs_program
from .examine import Examiner, check_untouched, unexpected
from .patch import is_replaced, replace_forward, restore_forward
from .recognition.candidates import MOST_LAYERS, layers_in
from .recognition.plan import Plan, UnknownStep, Unlike
from .recognition.proof import Gate
from .unchanged import seen_in

_SCRIPTED = "it is compiled by TorchScript: convert the model that was compiled"
_ONLY_GATE = "it returns a gate, which the code around it multiplies: no kernel makes one gate by itself"

_KNOWN_FUNCTIONS = "between its layers the kernels know ReLU, for a gate sigmoid and hard sigmoid"


class Found(NamedTuple):
    """A module by its name in the model and its class, and what was made of it, or why nothing was."""

    name: str
    kind: str
    note: str


class ConversionReport(NamedTuple):
    """What `convert_cbam` found in a model; printed, a table, and whether the kernels run on this machine."""

    converted: tuple[Found, ...]
    already: tuple[Found, ...]
    skipped: tuple[Found, ...]

    def __str__(self) -> str:
        groups = {"converted": self.converted, "already": self.already, "skipped": self.skipped}
        rows = [("", "module", "class", "")]
        rows += [
            (what, found.name or "(the model)", found.kind, found.note)
            for what, group in groups.items()
            for found in group
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join((*map(str.ljust, row[:3], widths), row[3])).rstrip() for row in rows]
        counts = ", ".join(f"{len(group)} {what}" for what, group in groups.items())
        runs = [_where_kernels_run()] if self.converted or self.already else []
        return "\n".join([*(lines if len(lines) > 1 else []), *runs, counts])


def convert_cbam(model: nn.Module, *, squeeze_excite: bool = False) -> ConversionReport:
    """Makes every CBAM in the model, of whatever published form, run by `cbam_triton`, in place.

    A CBAM is known by what its forward computes: its code is traced on placeholders, and the trace must give what the
    library gives on maps of many sizes, with drawn weights, in float64 on the CPU. Nothing of the model itself is run.
    Where a module multiplies by gates that children return, these steps of its forward are replaced, and what it reads
    of the module besides parameters, buffers and children is fixed. Parameters, keys, optimizers, modes and hooks of
    the module stay what they are. What is nearly a CBAM is left alone and reported with the reason; so is one with
    hooks on children that would not run any more. A child that is replaced, patched or hooked later means that the
    module's own forward runs again.

    With `squeeze_excite` the same is done for squeeze-and-excitation layers, the channel gate of a CBAM on the average
    alone: with two layers and ReLU, or one as in effective SE. Without it they are left alone, and not reported.

        report = convert_cbam(model)
        print(report)

    Raises: TypeError for anything but a module, and for a `squeeze_excite` that is no bool.
    """
    check_bool("squeeze_excite", squeeze_excite)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}: pass the model, not its state_dict")
    groups: Groups = {name: [] for name in ConversionReport._fields}
    _Conversion(groups, squeeze_excite).visit(model, "")
    return ConversionReport(*map(tuple, groups.values()))


def restore_cbam(model: nn.Module) -> int:
    """Gives every converted module in the model its own forward back, and returns how many there were.

        restore_cbam(model)

    Raises: TypeError for anything but a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}: pass the model that was converted")
    converted = [module for module in model.modules() if is_replaced(module)]
    for module in converted:
        restore_forward(module)
    return len(converted)


Groups = dict[str, list[Found]]


class _Conversion:
    """One walk through a model."""

    def __init__(self, groups: Groups, squeezes: bool) -> None:
        self._groups, self._squeezes = groups, squeezes
        self._seen: set[int] = set()
        self._examine = Examiner()

    def visit(self, module: nn.Module, name: str) -> bool:
        """Converts or reports this module, or else what is in it; returns whether there was anything."""
        if id(module) in self._seen:
            return False
        self._seen.add(id(module))
        kind = module.original_name if isinstance(module, jit.ScriptModule) else type(module).__name__

        def row(note: str) -> Found:
            return Found(name, kind, note)

        try:
            return self._visited(module, name, row)
        except Exception as error:  # nothing in one module may stop the others
            self._groups["skipped"].append(row(str(unexpected(error))))
            for key, child in _children(module, name).items():
                self.visit(child, key)
            return True

    def _visited(self, module: nn.Module, name: str, row: Callable[[str], Found]) -> bool:
        if type(module).__module__.split(".")[0] == __name__.split(".")[0]:
            self._groups["already"].append(row("of cbam_triton"))
            return True
        if isinstance(module, jit.ScriptModule):
            self._groups["skipped"].append(row(_SCRIPTED))
            return True
        children = _children(module, name)
        if is_replaced(module):
            self._groups["already"].append(row("converted before"))
            return self._visit_others(module, children) if runs_program(module) else True
        wrapped = self._wrapped(children, len(layers_in(module)))
        if wrapped is not None:
            return self.visit(children[wrapped], wrapped)
        reason = self._converted_whole(module, row)
        if reason is None:
            return True
        if not reason.is_gate and self._found_pairs(module, row, reason):
            return self._visit_others(module, children, reason.words is None)
        return self._visit_inside(children, row, reason)

    def _converted_whole(self, module: nn.Module, row: Callable[[str], Found]) -> "_Reason | None":
        """None if the module is converted, else why it is not."""
        found = self._examine(module)
        if isinstance(found, Plan) and (self._squeezes or not found.is_squeeze):
            try:
                check_untouched(module)
            except Unlike as unlike:
                return _Reason(str(unlike))
            replace_forward(module, run_module, Converted(found, seen_in(module)))
            self._groups["converted"].append(row(described(module, found)))
            return None
        if isinstance(found, Gate):
            return _Reason(_ONLY_GATE if self._squeezes or not found.plan.is_squeeze else None, is_gate=True)
        if isinstance(found, Unlike):
            if found.resembles or "cbam" in type(module).__name__.lower():
                return _Reason(str(found))
            known = f": {_KNOWN_FUNCTIONS}" if isinstance(found, UnknownStep) else ""
            return _Reason(f"{found}{known}" if self._squeezes and found.squeezes else None)
        return _Reason(None)

    def _visit_inside(self, children: dict[str, nn.Module], row: Callable[[str], Found], reason: "_Reason") -> bool:
        """Visits the children of a module that is not converted."""
        if reason.words is None:
            return sum(self.visit(child, key) for key, child in children.items()) > 0
        self._visit_quietly(children)
        self._groups["skipped"].append(row(reason.words))
        return True

    def _visit_quietly(self, children: dict[str, nn.Module]) -> None:
        """Visits children whose reasons are not told, since that of their parent is."""
        told = list(self._groups["skipped"])
        for key, child in children.items():
            self.visit(child, key)
        self._groups["skipped"][:] = told

    def _wrapped(self, children: dict[str, nn.Module], layers: int) -> str | None:
        """The child that is a CBAM with all these layers: the wrapper is not to be taken for it."""
        found = next((key for key, child in children.items() if len(layers_in(child)) == layers), None)
        if found is None or not 1 <= layers <= MOST_LAYERS:
            return None
        return found if isinstance(self._examine(children[found]), Plan) else None

    def _found_pairs(self, module: nn.Module, row: Callable[[str], Found], reason: "_Reason") -> bool:
        """Converts the products of gates in the module's own forward, or reports why not; whether there are any."""
        gates = self._examine.gates_in(module)
        try:
            found = paired(module, gates, self._squeezes) if gates else None
        except Unlike as unlike:
            if reason.words is None:
                self._groups["skipped"].append(row(str(unlike)))
            return reason.words is None
        if found is None:
            return False
        program, note = found
        replace_forward(module, run_program, program)
        note = note if reason.words is None else f"{note}; not the rest: {reason.words}"
        self._groups["converted"].append(row(note))
        return True

    def _visit_others(self, module: nn.Module, children: dict[str, nn.Module], told: bool = True) -> bool:
        """Visits what is in a block besides the gates that the block itself was reported for."""
        self._seen.update(id(module.get_submodule(path)) for path in self._examine.gates_in(module))
        if told:
            for key, child in children.items():
                self.visit(child, key)
        else:
            self._visit_quietly(children)
        return True


class _Reason(NamedTuple):
    """Why a module is not converted as a whole; no words where its user need not know."""

    words: str | None
    is_gate: bool = False


def _children(module: nn.Module, name: str) -> dict[str, nn.Module]:
    """The children by their names in the model, each once."""
    found = {f"{name}.{key}" if name else key: child for key, child in module._modules.items() if child is not None}
    return {key: child for i, (key, child) in enumerate(found.items()) if child not in list(found.values())[:i]}


def _where_kernels_run() -> str:
    device = hardware.device_type()
    if device is None:
        return f"The kernels cannot run here, plain PyTorch computes the same: {hardware.missing()}"
    return f"The kernels run here, on {device} tensors."
