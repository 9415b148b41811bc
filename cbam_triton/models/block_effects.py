"""What the steps of a traced block change in place, and who could see it."""

from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from .recognition.nodes import operation

_FRESH = ("add", "cat", "div", "mul", "multiply", "sub", "truediv")  # their results have memory of their own


class Effects:
    """The changes in place of one graph, whose children at `gates` return memory of their own."""

    def __init__(self, module: nn.Module, graph: fx.Graph, gates: frozenset[str]) -> None:
        self.module, self.gates = module, gates
        self.order = {node: i for i, node in enumerate(graph.nodes)}

    def changes(self, node: fx.Node) -> bool:
        """Whether the step changes a value in place."""
        if node.op == "call_module":
            parts = self.module.get_submodule(str(node.target)).modules()
            return any(getattr(part, "inplace", False) for part in parts)
        name = operation(node) or ""
        return name.endswith("_") or bool(node.kwargs.get("inplace")) or node.kwargs.get("out") is not None

    def changes_among(self, steps: Iterable[fx.Node]) -> bool:
        """Whether anything between the first and the last of these steps changes a value in place."""
        steps = set(steps)
        places = [self.order[node] for node in steps]
        between = list(self.order)[min(places) : max(places)]
        return any(self.changes(node) for node in between if node not in steps)

    def is_overwritten_and_read(self, change: fx.Node) -> bool:
        """Whether what this node changes may be read after it: under another name, through a view, by the caller."""
        if not self.changes(change):
            return False
        shared, todo = {change}, [change.args[0]]
        while todo:
            node: Any = todo.pop()
            if node in shared:
                continue
            shared.add(node)
            if node.op in ("placeholder", "get_attr") or any(self.order[u] > self.order[change] for u in node.users):
                return True
            todo += [user for user in node.users if not self._is_fresh(user)]
            todo += [] if self._is_fresh(node) else node.all_input_nodes
        return False

    def _is_fresh(self, node: fx.Node) -> bool:
        """Whether its value shares no memory with what goes in."""
        if node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            return node.target in self.gates or (
                type(layer).__module__.startswith("torch.nn.") and bool(layer._parameters)
            )
        return operation(node) in _FRESH
