"""Gates over a data set: which of them depend on the input, and which are constants."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..spec.values import described
from .recording import record


class GateStatistics(NamedTuple):
    """What one CBAM's gates were over a data set: mean and standard deviation, on the CPU in float64.

    `channel_mean` and `channel_std` (C,) are over `samples`, `spatial_mean` and `spatial_std` () over samples and
    pixels; None without that gate. A gate whose deviation is near zero does not depend on its input.
    """

    samples: int
    channel_mean: Tensor | None
    channel_std: Tensor | None
    spatial_mean: Tensor | None
    spatial_std: Tensor | None


@torch.no_grad()
def statistics(model: nn.Module, batches: Iterable[Any]) -> dict[str, GateStatistics]:
    """Statistics of every CBAM's gates over `batches`, by the names that `record` gives.

    A batch is the model's input, or a tuple or list that begins with it, as loaders of labelled images give. The model
    stays in its mode: call `model.eval()` first.

    Raises: ValueError if no batch came or no gates were applied, TypeError for batches of another kind.

        found = cbam_triton.viz.statistics(model.eval(), loader)
        found["layer1.0.cbam"]
    """
    sums: dict[str, dict[int, _Sum]] = {}
    samples: dict[str, int] = {}
    with record(model) as gates:
        for batch in batches:
            model(_input_of(batch))
            for name, found in gates.items():
                for kind, gate in enumerate(found):
                    if gate is not None:
                        # Of the spatial gate all pixels are one sample each.
                        rows = gate if kind == 0 else gate.reshape(-1)
                        sums.setdefault(name, {}).setdefault(kind, _Sum()).add(rows)
                samples[name] = samples.get(name, 0) + next(len(gate) for gate in found if gate is not None)
    if not sums:
        raise ValueError(
            "no gates were applied: expected batches, and a model with CBAMs: call convert_cbam or insert_cbam first"
        )
    none = (None, None)
    return {
        name: GateStatistics(samples[name], *(kinds[0].moments() if 0 in kinds else none),
                             *(kinds[1].moments() if 1 in kinds else none))
        for name, kinds in sums.items()
    }  # fmt: skip


def _input_of(batch: Any) -> Tensor:
    x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(x, Tensor) or x.ndim < 3:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else described(x)
        raise TypeError(
            f"batches must hold tensors (N, C, *pixels), or tuples that begin with one, got {got}: pass a loader, or a "
            "list of batches"
        )
    return x


class _Sum:
    """Running sums of values and squares over the first axis."""

    def __init__(self) -> None:
        self.count, self.first, self.second = 0, torch.zeros(()), torch.zeros(())

    def add(self, rows: Tensor) -> None:
        rows = rows.double().cpu()
        self.count += len(rows)
        self.first, self.second = self.first + rows.sum(0), self.second + rows.square().sum(0)

    def moments(self) -> tuple[Tensor, Tensor]:
        mean = self.first / self.count
        return mean, (self.second / self.count - mean.square()).clamp(min=0).sqrt()
