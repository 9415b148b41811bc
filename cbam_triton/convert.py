"""CBAM in a model that others wrote, run by the kernels in place: `convert_cbam`, undone by `restore_cbam`.

A converted module keeps its class, children, parameters and keys; only its `forward` becomes an attribute of its own.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from torch import jit, nn

from .forwards import is_replaced, replace_forward, restore_forward
from .likeness import MOST_LAYERS, is_container, layers_in, likeness
from .pairs import gates_in, is_gate, paired
from .planned import described, run_plan
from .recognise import OnlyGate, Plan, Unlike, check_untouched, is_squeeze, recognised
from .rewritten import run_program, runs_program


class Found(NamedTuple):
    """A module by its name in the model and its class, and what was made of it, or why nothing was."""

    name: str
    kind: str
    note: str


class ConversionReport(NamedTuple):
    """What `convert_cbam` found in a model; printed, a table."""

    converted: tuple[Found, ...]
    already: tuple[Found, ...]
    skipped: tuple[Found, ...]

    def __str__(self) -> str:
        groups = {"converted": self.converted, "already": self.already, "skipped": self.skipped}
        rows = [("", "module", "class", "")]
        rows += [(what, found.name or "(the model)", *found[1:]) for what, group in groups.items() for found in group]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join((*map(str.ljust, row[:3], widths), row[3])).rstrip() for row in rows]
        counts = ", ".join(f"{len(group)} {what}" for what, group in groups.items())
        return "\n".join([*(lines if len(lines) > 1 else []), counts])


def convert_cbam(model: nn.Module) -> ConversionReport:
    """Makes every CBAM in the model, of whatever published form, run by `cbam_triton`, in place.

    A CBAM is known by what its forward computes: it is traced on placeholders, nothing is run. Where a module
    multiplies by gates that children return, these steps of its forward are replaced, and what it reads of the module
    besides parameters, buffers and children is fixed. Parameters, keys, optimizers, modes and hooks of the module stay
    what they are. What is nearly a CBAM is left alone and reported with the reason; so is one with hooks on children
    that would not run any more.

    Raises: TypeError for anything but a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}: pass the model, not its state_dict")
    groups: dict[str, list[Found]] = {name: [] for name in ConversionReport._fields}
    seen: set[int] = set()
    _visit(model, "", groups, seen)
    return ConversionReport(*map(tuple, groups.values()))


def restore_cbam(model: nn.Module) -> int:
    """Gives every converted module in the model its own forward back, and returns how many there were."""
    converted = [module for module in model.modules() if is_replaced(module)]
    for module in converted:
        restore_forward(module)
    return len(converted)


def _visit(module: nn.Module, name: str, groups: dict[str, list[Found]], seen: set[int]) -> bool:
    """Converts or reports this module, or else what is in it; returns whether there was anything."""
    if id(module) in seen:
        return False
    seen.add(id(module))
    kind = module.original_name if isinstance(module, jit.ScriptModule) else type(module).__name__
    row = functools.partial(Found, name, kind)
    if type(module).__module__.split(".")[0] == __package__:
        groups["already"].append(row("of cbam_triton"))
        return True
    children = {f"{name}.{key}" if name else key: child for key, child in module.named_children()}
    if is_replaced(module):
        groups["already"].append(row("converted before"))
        return _visit_others(module, children, groups, seen) if runs_program(module) else True
    layers = layers_in(module)
    wrapped = _wrapped(children, len(layers))
    if wrapped is not None and _visit(children[wrapped], wrapped, groups, seen):
        return True
    like = None if is_container(module) else likeness(kind, name, layers)
    reason = None
    if like:
        try:
            plan = _checked_plan(module, like)
        except Unlike as unlike:
            reason = unlike if like != "part" or isinstance(unlike, OnlyGate) else None
        else:
            replace_forward(module, run_plan, plan)
            groups["converted"].append(row(described(module, plan)))
            return True
    if not isinstance(reason, OnlyGate) and _found_pairs(module, row, reason, groups):
        return _visit_others(module, children, groups, seen)
    inner = groups if reason is None else {group: [] for group in groups}
    found = sum(_visit(child, key, inner, seen) for key, child in children.items()) > 0
    if reason is None:
        return found
    # A part that can be converted by itself is; of one that cannot, the reason of the whole tells more.
    groups["converted"] += inner["converted"]
    groups["skipped"].append(row(str(reason)))
    return True


def _wrapped(children: dict[str, nn.Module], layers: int) -> str | None:
    """The child that has all these layers, unless it is a gate: the wrapper is not to be taken for it."""
    found = next((key for key, child in children.items() if len(layers_in(child)) == layers), None)
    return None if found is None or not 1 <= layers <= MOST_LAYERS or is_gate(children[found]) else found


def _found_pairs(
    module: nn.Module, row: Callable[[str], Found], reason: Unlike | None, groups: dict[str, list[Found]]
) -> bool:
    """Converts the products of gates in the module's own forward, or reports why not; whether there are any."""
    gates = gates_in(module)
    try:
        found = paired(module, gates) if gates else None
    except Unlike as unlike:
        if reason is None:
            groups["skipped"].append(row(str(unlike)))
        return reason is None
    if found is None:
        return False
    program, note = found
    replace_forward(module, run_program, program)
    groups["converted"].append(row(note if reason is None else f"{note}; not the rest: {reason}"))
    return True


def _visit_others(
    module: nn.Module, children: dict[str, nn.Module], groups: dict[str, list[Found]], seen: set[int]
) -> bool:
    """Visits what is in a block besides the gates that the block itself was reported for."""
    seen.update(map(id, gates_in(module).values()))
    for key, child in children.items():
        _visit(child, key, groups, seen)
    return True


def _checked_plan(module: nn.Module, like: str) -> Plan:
    check_untouched(module)
    plan = recognised(module)
    if like == "part" and is_squeeze(plan):
        raise Unlike("it is a squeeze-and-excitation layer")
    return plan
