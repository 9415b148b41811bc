"""What a module of others is: a CBAM that is proven, a gate of one, or something else, with the reason."""

from torch import jit, nn

from ..spec.children import is_hooked
from .patch import is_replaced
from .recognition.candidates import is_container, layers_in, may_be_cbam, may_be_gate, pools_maps
from .recognition.evaluate import forward_of
from .recognition.layers import DrawnLayers, is_norm
from .recognition.plan import Plan, Unlike
from .recognition.proof import Gate, gate_of, proven


class Examiner:
    """Examines modules, each once."""

    def __init__(self) -> None:
        self._found: dict[int, Plan | Gate | Unlike] = {}
        self._examined: list[nn.Module] = []  # kept, so that an id stays that of its module

    def __call__(self, module: nn.Module) -> Plan | Gate | Unlike | None:
        """What the module is; None if its layers are not those of a CBAM."""
        layers = layers_in(module)
        if is_container(module) or not may_be_cbam(layers) or layers == [module]:
            return None
        if any(map(is_replaced, module.modules())):
            return None  # converted, or with a part that is
        if id(module) not in self._found:
            self._examined.append(module)
            self._found[id(module)] = _examined(module, layers)
        return self._found[id(module)]

    def gates_in(self, module: nn.Module) -> dict[str, Gate]:
        """The children that return a gate to the module's own forward, by path, also those in plain containers."""
        found: dict[str, Gate] = {}
        for name, child in () if isinstance(module, jit.ScriptModule) else module._modules.items():
            if child is not None and is_container(child):
                found |= {f"{name}.{path}": gate for path, gate in self.gates_in(child).items()}
            elif child is not None and (gate := self.gate(child)) is not None:
                found[name] = gate
        return found

    def gate(self, module: nn.Module) -> Gate | None:
        found = self(module) if may_be_gate(module) else None
        return found if isinstance(found, Gate) else None


def _examined(module: nn.Module, layers: list[nn.Module]) -> Plan | Gate | Unlike:
    forward = None
    try:
        if any(isinstance(part, jit.ScriptModule) for part in module.modules()):
            raise Unlike("a part of it is compiled by TorchScript: convert the model before it is compiled")
        forward = forward_of(module)
        drawn = DrawnLayers(forward.layers)
        gate = gate_of(forward, drawn)
        return proven(forward, drawn) if gate is None else gate
    except Unlike as unlike:
        unlike.resembles = unlike.resembles or (pools_maps(layers) if forward is None else forward.resembles)
        unlike.squeezes = unlike.squeezes or (forward is not None and forward.squeezes)
        return unlike
    except Exception as error:  # nothing in one module may stop the others
        return unexpected(error)


def unexpected(error: Exception) -> Unlike:
    """What an error that nobody expected says of a module."""
    words = (str(error).splitlines() or [""])[0]
    unlike = Unlike(f"it could not be examined: {type(error).__name__}: {words}".rstrip(": "))
    unlike.resembles = True
    return unlike


def check_untouched(module: nn.Module, prefix: str = "") -> None:
    """No part of the module does something besides its own forward.

    Raises: Unlike, in which names begin with `prefix`.
    """
    for name, part in module.named_modules(prefix=prefix):
        if "forward" in part.__dict__:
            raise Unlike(f"the forward of {name or 'this module'} is replaced by another one")
        if name and not is_norm(part) and is_hooked(part):
            raise Unlike(f"its child {name} has hooks, which would no longer run: remove them first")
