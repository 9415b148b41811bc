"""The paper's figure 4 with the ablation's networks: what plain, SE and CBAM networks look at."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from cbam_triton import viz

from . import ablation

ROWS = {"plain": "none", "+ SE": "SE", "+ CBAM": "pools, K = 7"}  # the figure's name of an arm
IMAGES = 6
LAYER = "blocks.1"  # the last block with a map as large as a digit
_ENLARGED = 12  # times, for the eye


def draw_looks(data: str, epochs: int, path: Path) -> str:
    """Train the networks of seed 0 without fold 0, draw them on images of fold 0, and say what they scored.

    The images are those on which the softmax scores of the true class differ most between the networks.
    """
    images, labels = ablation.load(data)
    train_on, held_out = next(ablation.folds(labels))
    networks = {name: ablation.trained(images, labels, train_on, arm, epochs, 0) for name, arm in ROWS.items()}
    with torch.no_grad():
        scores = torch.stack([net(images[held_out]).double().softmax(1) for net in networks.values()])
    true = scores.gather(2, labels[held_out].expand(len(networks), -1)[..., None])[..., 0]
    apart = (true.max(0).values - true.min(0).values).argsort(descending=True)[:IMAGES]
    shown = held_out[apart]
    pictures = F.interpolate(images[shown], scale_factor=_ENLARGED, mode="nearest")
    found = viz.compare(networks, images[shown], labels[shown].tolist(), path, layer=LAYER, pictures=pictures)
    means = ", ".join(f"{name} {row.mean():.3f}" for name, row in zip(networks, true, strict=True))
    here = ", ".join(f"{name} {row.mean():.3f}" for name, row in zip(networks, found, strict=True))
    return f"softmax score of the true class: on all held-out images {means}; on the {len(shown)} drawn ones {here}"
