"""Gates that a block multiplies by itself, found in the trace of its forward: each product of a map and gates of it.

In the blocks of luuuyi's ResNet `out = self.ca(out) * out` is a line of the block. Names play no part, nor do the
order of factors and of both gates; whatever else the forward does stays.
"""

import inspect
from collections.abc import Iterator
from typing import Any

from torch import fx, jit, nn

from .blocks import RELU
from .likeness import is_container, may_be_gate
from .planned import described
from .recognise import Unlike, check_untouched, gate_of, is_squeeze, plan_of
from .rewritten import Pair, Program, rewritten
from .terms import Term, X, product, within
from .traces import Tracer, Untraceable, in_both_modes, operation

_PRODUCTS = ("mul", "multiply", "mul_", "multiply_")
_FRESH = ("add", "cat", "div", "mul", "multiply", "sub", "truediv")  # their results have memory of their own


def gates_in(module: nn.Module) -> dict[str, nn.Module]:
    """What may return a gate to the module's own forward, by path: children, and those of plain containers."""
    found = {}
    for name, child in () if isinstance(module, jit.ScriptModule) else module._modules.items():
        if child is not None and is_container(child):
            found |= {f"{name}.{path}": gate for path, gate in gates_in(child).items()}
        elif child is not None and is_gate(child):
            found[name] = child
    return found


def is_gate(module: nn.Module) -> bool:
    if not may_be_gate(module):
        return False
    try:
        gate_of(module)
    except Unlike:
        return False
    return True


def paired(module: nn.Module, gates: dict[str, nn.Module]) -> tuple[Program, str] | None:
    """(the forward with a call for each product of a map and these gates, description), None if it has none.

    Raises: Unlike where a gate is used otherwise, or the forward cannot be traced.
    """
    if is_container(module):
        return None
    if "forward" in vars(module):
        raise Unlike("the forward of this module is replaced by another one")
    try:
        graph, other = in_both_modes(module, lambda block: _Tracer().graph_of(block))
    except Untraceable as error:
        raise Unlike(str(error)) from None
    pairs = _Finder(module, graph, gates).pairs()
    if not pairs:
        return None
    if str(graph) != str(other):
        raise Unlike("its forward does another thing in training than in eval mode")
    notes = [_described(module, pair) for pair in reversed(pairs)]
    return rewritten(graph, pairs), f"in its forward: {' | '.join(notes)}"


class _Tracer(Tracer):
    """Traces one forward, given only what it needs: every child is a step."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        if {"isinstance", "is_tensor"} & set(inspect.unwrap(root_fn).__code__.co_names):
            raise Untraceable("it asks for the type of a value, and a placeholder has none")
        _, *parameters = inspect.signature(root_fn).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [p.name for p in parameters if p.kind in kinds and p.default is p.empty]
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]


class _Finder:
    """The pairs of one graph."""

    def __init__(self, module: nn.Module, graph: fx.Graph, gates: dict[str, nn.Module]) -> None:
        self.module, self.gates = module, gates
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        calls = [node for node in graph.nodes if node.op == "call_module" and node.target in gates]
        self.terms = {node: gate_of(gates[str(node.target)]) for node in calls}
        self.taken: set[fx.Node] = set()

    def pairs(self) -> list[Pair]:
        """All pairs, the last first.

        Raises: Unlike if a gate is left over.
        """
        found: list[Pair] = []
        why: Unlike | None = None
        for root in reversed(self.order):
            for x in [] if root in self.taken else reversed(list(self._maps_of(root))):
                try:
                    pair = self._pair(root, x)
                except Unlike as unlike:
                    why = why or unlike
                    continue
                found.append(self._ended(pair))
                self.taken |= found[-1].steps
                break
        for node, term in self.terms.items():
            if node not in self.taken and not self._is_squeeze(node, term):
                raise why or Unlike(f"it does not multiply the gate that {node.target} returns with the map it is of")
        return found

    def _is_squeeze(self, node: fx.Node, term: Term) -> bool:
        return is_squeeze(plan_of(self.module, product(X, within(term, _path(node), X))))

    def _maps_of(self, root: fx.Node) -> Iterator[fx.Node]:
        """What a product may be of: its factor that is no gate; the factor of that, and so on."""
        while _is_product(root):
            maps = [factor for factor in root.all_input_nodes if not self._is_gating(factor)]
            if len(maps) != 1:
                return
            root = maps[0]
            yield root

    def _is_gating(self, node: fx.Node) -> bool:
        return node in self.terms or (_is_product(node) and all(map(self._is_gating, node.all_input_nodes)))

    def _pair(self, root: fx.Node, x: fx.Node) -> Pair:
        steps: set[fx.Node] = set()
        plan = plan_of(self.module, self._term(root, x, steps))
        if is_squeeze(plan):
            raise Unlike("it is a squeeze-and-excitation layer")
        targets = [str(node.target) for node in steps if node in self.terms]
        for target in targets:
            check_untouched(self.gates[target], target)
            if targets.count(target) > 1:
                raise Unlike(f"it calls {target} twice for one product")
        if not all(steps.issuperset(node.users) for node in steps - {root}):
            raise Unlike("it uses a gate, or a product with one, for something else too")
        if self._changes_among(steps):
            raise Unlike("it changes something in place between a gate and the product")
        if any(_is_product(node) and self._changes(node) and self._is_read_after(node) for node in steps):
            raise Unlike("it multiplies in place what may be read again")
        return Pair(plan, x, frozenset(steps), root)

    def _term(self, node: Any, x: fx.Node, steps: set[fx.Node]) -> Term:
        """The term of a value by that of x; `steps` gets the nodes that it takes."""
        if node is x:
            return X
        if node in self.terms and len(node.args) == 1 and not node.kwargs:
            steps.add(node)
            return within(self.terms[node], _path(node), self._term(node.args[0], x, steps))
        if isinstance(node, fx.Node) and _is_product(node):
            steps.add(node)
            return product(*(self._term(factor, x, steps) for factor in node.args))
        raise Unlike("it multiplies a gate with another map than it is of")

    def _ended(self, pair: Pair) -> Pair:
        """The pair with a sum and a ReLU after it, where nothing else reads what is between."""
        longer, user = pair, self._only_user(pair.last)
        if user is not None and operation(user) in ("add", "add_") and len(user.all_input_nodes) == 2 == len(user.args):
            in_place = self._changes(user)
            if not user.kwargs and (user.args[0] is pair.last or not in_place):
                (residual,) = (node for node in user.all_input_nodes if node is not pair.last)
                longer = longer._replace(steps=longer.steps | {user}, last=user, residual=residual, in_place=in_place)
                user = self._only_user(user)
        relu = None if user is None else self._relu(user)
        if user is not None and relu is not None:
            longer = longer._replace(steps=longer.steps | {user}, last=user, relu=relu)
        return pair if self._changes_among(longer.steps) else longer

    def _only_user(self, node: fx.Node) -> fx.Node | None:
        user = next(iter(node.users), None)
        return user if len(node.users) == 1 and user not in self.taken else None

    def _relu(self, node: fx.Node) -> str | None:
        if len(node.args) != 1 or not set(node.kwargs) <= {"inplace"}:
            return None
        if node.op == "call_module":
            return str(node.target) if type(self.module.get_submodule(str(node.target))) is nn.ReLU else None
        return RELU if operation(node) in ("relu", "relu_") else None

    def _changes_among(self, steps: set[fx.Node] | frozenset[fx.Node]) -> bool:
        """Whether anything between the first and the last of these steps changes a value in place."""
        places = [self.order[node] for node in steps]
        between = list(self.order)[min(places) : max(places)]
        return any(self._changes(node) for node in between if node not in steps)

    def _changes(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return any(
                getattr(part, "inplace", False) for part in self.module.get_submodule(str(node.target)).modules()
            )
        name = operation(node) or ""
        return name.endswith("_") or bool(node.kwargs.get("inplace")) or "out" in node.kwargs

    def _is_read_after(self, change: fx.Node) -> bool:
        """Whether what this node changes may be read after it: under another name, through a view, or by the caller."""
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
            return node in self.terms or (type(layer).__module__.startswith("torch.nn.") and bool(layer._parameters))
        return operation(node) in _FRESH


def _is_product(node: fx.Node) -> bool:
    return operation(node) in _PRODUCTS and len(node.all_input_nodes) == len(node.args) == 2 and not node.kwargs


def _path(node: fx.Node) -> tuple[str, ...]:
    return tuple(str(node.target).split("."))


def _described(module: nn.Module, pair: Pair) -> str:
    ends = " + residual" * (pair.residual is not None) + ", ReLU" * (pair.relu is not None)
    return described(module, pair.plan) + ends
