"""DataComp's training recipes, one a scale of its pool: Gadre et al. 2023, arXiv:2304.14108."""

from __future__ import annotations

import dataclasses
from typing import Literal

RecipeName = Literal["datacomp-debug", "datacomp-small", "datacomp-medium", "datacomp-large", "datacomp-xlarge"]
Precision = Literal["float32", "bfloat16"]
Initial = Literal["clip", "open_clip"]
Sampling = Literal["epochs", "replacement"]

_ROUNDS, _WORKERS = 5, 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe sets; a value that a user gives takes its place.

    The samples seen are fixed by the scale whatever the size of the subset: a smaller one repeats more.
    """

    arch: str
    batch_size: int
    samples_seen: int
    learning_rate: float = 5e-4
    warmup: int = 500
    beta2: float = 0.98
    initial: Initial = "open_clip"
    precision: Precision = "bfloat16"
    sampling: Sampling = "replacement"


RECIPES: dict[RecipeName, Recipe] = {
    "datacomp-debug": Recipe(arch="ViT-B-32", batch_size=1_024, samples_seen=128_000, learning_rate=1e-4),
    "datacomp-small": Recipe(arch="ViT-B-32", batch_size=4_096, samples_seen=12_800_000),
    "datacomp-medium": Recipe(arch="ViT-B-32", batch_size=4_096, samples_seen=128_000_000),
    "datacomp-large": Recipe(arch="ViT-B-16", batch_size=8_192, samples_seen=1_280_000_000),
    "datacomp-xlarge": Recipe(
        arch="ViT-L-14", batch_size=90_112, samples_seen=12_800_000_000, learning_rate=1e-3, warmup=10_000, beta2=0.95
    ),
}


def datacomp_steps(samples_seen: int, batch_size: int) -> int:
    """Counts the steps as DataComp's training code does: in five rounds, whose batches four workers share evenly.

        steps = 5 * 4 * ceil(ceil(samples / 5 / batch) / 4)

    Five is the number of checkpoints that are kept.

    >>> datacomp_steps(12_800_000, 4_096), datacomp_steps(128_000_000, 4_096)
    (3140, 31260)
    """
    batches = -(-samples_seen // (_ROUNDS * batch_size))
    return _ROUNDS * _WORKERS * -(-batches // _WORKERS)
