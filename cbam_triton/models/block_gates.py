"""Gates that a block multiplies by itself, found in the trace of its forward: each product of a map and gates of it.

In the blocks of luuuyi's ResNet `out = self.ca(out) * out` is a line of the block. What lies between a map and such a
product is proven as a module is; whatever else the forward does stays.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn

from .apply_cbam import described
from .block_effects import Effects
from .block_rewrite import Pair, Program, rewritten
from .examine import check_untouched
from .recognition.candidates import is_container
from .recognition.evaluate import Forward, evaluate
from .recognition.layers import DrawnLayers
from .recognition.nodes import name_of, operation
from .recognition.plan import Unlike
from .recognition.proof import Gate, proven
from .recognition.steps import check_steps, constants
from .recognition.tracing import Tracer, Untraceable, in_both_modes
from .steps import RELU
from .unchanged import seen_in

_PRODUCTS = ("mul", "multiply")
# fmt: off
_RESHAPING = (  # may come between a gate and the product
    "broadcast_to", "contiguous", "einops.rearrange", "einops.repeat", "expand", "expand_as", "flatten", "getitem",
    "movedim", "permute", "repeat", "reshape", "reshape_as", "squeeze", "tile", "to", "transpose", "type_as",
    "unflatten", "unsqueeze", "view", "view_as",
)
# fmt: on


def paired(module: nn.Module, gates: dict[str, Gate], squeezes: bool = False) -> tuple[Program, str] | None:
    """(the forward with a call for each product of a map and these gates, description), None if it has none.

    Products that are no more than squeeze-and-excitation count with `squeezes`.
    Raises: Unlike where a gate is used otherwise, or the forward cannot be traced.
    """
    if is_container(module):
        return None
    if "forward" in vars(module):
        raise Unlike("the forward of this module is replaced by another one")
    try:
        graph = in_both_modes(module, lambda block: Tracer(whole_children=True).graph_of(block))
    except Untraceable as error:
        raise Unlike(str(error)) from None
    pairs = _Finder(module, graph, gates, squeezes).pairs()
    if not pairs:
        return None
    notes = [_described(module, pair) for pair in reversed(pairs)]
    seen = seen_in(module, *(path for path in gates))
    return rewritten(graph, pairs, seen), f"in its forward: {' | '.join(notes)}"


class _Finder:
    """The pairs of one graph."""

    def __init__(self, module: nn.Module, graph: fx.Graph, gates: dict[str, Gate], squeezes: bool) -> None:
        self.module, self.gates, self.squeezes = module, gates, squeezes
        self.effects = Effects(module, graph, frozenset(gates))
        self.order = self.effects.order
        self.calls = [node for node in graph.nodes if node.op == "call_module" and node.target in gates]
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
        for node in self.calls:
            if node not in self.taken and (self.squeezes or not self.gates[str(node.target)].plan.is_squeeze):
                raise why or Unlike(f"it does not multiply the gate that {node.target} returns with the map it is of")
        return found

    def _maps_of(self, root: fx.Node) -> Iterator[fx.Node]:
        """What a product may be of: its factor that is no gate; the factor of that, and so on."""
        while _is_product(root):
            maps = [factor for factor in root.all_input_nodes if not self._is_gating(factor)]
            if len(maps) != 1:
                return
            root = maps[0]
            yield root

    def _is_gating(self, node: fx.Node) -> bool:
        """Whether this is a gate, reshaped or not, or a product of gates."""
        if node in self.calls:
            return True
        if _is_product(node):
            return all(map(self._is_gating, node.all_input_nodes))
        if node.op == "call_module" or operation(node) is None or name_of(node) not in _RESHAPING:
            return False
        source = node.args[0] if node.args else None
        return isinstance(source, fx.Node) and self._is_gating(source)

    def _pair(self, root: fx.Node, x: fx.Node) -> Pair:
        steps: set[fx.Node] = set()
        self._gather(root, x, steps)
        ordered = [node for node in self.order if node in steps]
        forward = self._forward(ordered, x, root)
        plan = proven(forward, DrawnLayers(forward.layers))
        if plan.is_squeeze and not self.squeezes:
            raise Unlike("it is a squeeze-and-excitation layer")
        targets = [str(node.target) for node in ordered if node in self.calls]
        for target in targets:
            check_untouched(self.module.get_submodule(target), target)
            if targets.count(target) > 1:
                raise Unlike(f"it calls {target} twice for one product")
        values = {node for node in steps if self._holds_gate(node, steps)}
        if not all(steps.issuperset(node.users) for node in values - {root}):
            raise Unlike("it uses a gate, or a product with one, for something else too")
        if self.effects.changes_among(values):
            raise Unlike("it changes something in place between a gate and the product")
        if any(_is_product(node) and self.effects.is_overwritten_and_read(node) for node in values):
            raise Unlike("it multiplies in place what may be read again")
        return Pair(plan, x, frozenset(values), root, frozenset(steps - values))

    def _gather(self, node: fx.Node, x: fx.Node, steps: set[fx.Node]) -> None:
        """Puts into `steps` what leads from x to a node.

        Raises: Unlike where something else leads there too.
        """
        if node is x or node in steps:
            return
        is_gate = node in self.calls
        if node.op in ("placeholder", "get_attr") or (node.op == "call_module" and not is_gate):
            raise Unlike("it multiplies a gate with another map than it is of")
        steps.add(node)
        for source in node.all_input_nodes:
            self._gather(source, x, steps)

    def _holds_gate(self, node: fx.Node, steps: set[fx.Node]) -> bool:
        """Whether the value depends on a gate; sizes of x do not."""
        return node in self.calls or any(
            source in steps and self._holds_gate(source, steps) for source in node.all_input_nodes
        )

    def _forward(self, steps: list[fx.Node], x: fx.Node, root: fx.Node) -> Forward:
        """What these steps do with x, and each gate by its own forward."""
        check_steps(self.module, [node for node in steps if node not in self.calls])
        forwards = {str(node.target): self.gates[str(node.target)].forward for node in steps if node in self.calls}
        layers = {f"{path}.{name}": layer for path, gate in forwards.items() for name, layer in gate.layers.items()}

        def run(z: Tensor, drawn: DrawnLayers) -> Any:
            def called(node: fx.Node, *args: Any, **kwargs: Any) -> Any:
                (given,) = (*args, *kwargs.values())
                path = str(node.target)
                return forwards[path].run(given, _Inner(drawn, path))  # pyright: ignore[reportArgumentType]

            return evaluate(steps, {x: z.clone()}, called)[root]  # a change in place is for `effects`

        numbers = constants(steps).union(*(gate.numbers for gate in forwards.values()))
        return Forward(run, layers, numbers)

    def _ended(self, pair: Pair) -> Pair:
        """The pair with a sum and a ReLU after it, where nothing else reads what is between."""
        longer, user = pair, self._only_user(pair.last)
        if user is not None and operation(user) in ("add", "add_") and len(user.all_input_nodes) == 2 == len(user.args):
            in_place = self.effects.changes(user)
            if not user.kwargs and (user.args[0] is pair.last or not in_place):
                (residual,) = (node for node in user.all_input_nodes if node is not pair.last)
                longer = longer._replace(steps=longer.steps | {user}, last=user, residual=residual, in_place=in_place)
                user = self._only_user(user)
        relu = None if user is None else self._relu(user)
        if user is not None and relu is not None:
            longer = longer._replace(steps=longer.steps | {user}, last=user, relu=relu)
        return pair if self.effects.changes_among(longer.steps) else longer

    def _only_user(self, node: fx.Node) -> fx.Node | None:
        user = next(iter(node.users), None)
        return user if len(node.users) == 1 and user not in self.taken else None

    def _relu(self, node: fx.Node) -> str | None:
        if len(node.args) != 1 or not set(node.kwargs) <= {"inplace"}:
            return None
        if node.op == "call_module":
            return str(node.target) if type(self.module.get_submodule(str(node.target))) is nn.ReLU else None
        return RELU if operation(node) in ("relu", "relu_") else None


class _Inner:
    """The drawn layers of the module that holds a gate, by their paths in the gate."""

    def __init__(self, drawn: DrawnLayers, path: str) -> None:
        self._drawn, self._path = drawn, path

    def __call__(self, path: str, *args: Any, **kwargs: Any) -> Tensor:
        return self._drawn(f"{self._path}.{path}", *args, **kwargs)


def _is_product(node: fx.Node) -> bool:
    if node.op == "call_module" or node.kwargs or operation(node) is None or name_of(node) not in _PRODUCTS:
        return False
    return len(node.all_input_nodes) == len(node.args) == 2


def _described(module: nn.Module, pair: Pair) -> str:
    ends = " + residual" * (pair.residual is not None) + ", ReLU" * (pair.relu is not None)
    return described(module, pair.plan) + ends
