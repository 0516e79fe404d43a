"""Dice pooled per patient over windows that are predicted alone: no network sees where a window lies."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fmct.data.labelled import LabelledBatch

Mask = Callable[[LabelledBatch], Tensor]  # a batch → (B, D, H, W) bool
INSIDE = 0.5  # share of a voxel from which it counts as lesion; probability from which it is predicted


@dataclass
class PooledDice:
    """Voxels counted per patient; `scores` are the Dice of all windows of a patient together."""

    shared: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    sizes: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, patients: Iterable[str], predicted: Tensor, truth: Tensor) -> None:
        """Count (B, D, H, W) bool masks, one patient a row."""
        shared = (predicted & truth).flatten(1).sum(1).tolist()
        sizes = (predicted.flatten(1).sum(1) + truth.flatten(1).sum(1)).tolist()
        for patient, both, size in zip(patients, shared, sizes, strict=True):
            self.shared[patient] += both
            self.sizes[patient] += size

    @property
    def scores(self) -> dict[str, float]:
        """{patient: Dice}; a patient without a voxel in either mask has none: Dice is undefined there."""
        return {p: 2 * self.shared[p] / size for p, size in self.sizes.items() if size}


def window_dice(batches: Iterable[LabelledBatch], masks: Mapping[str, Mask]) -> dict[str, dict[str, float]]:
    """Return {name: {patient's number in `bags`, as text: Dice}} of every mask against the truth."""
    pooled = {name: PooledDice() for name in masks}
    for batch in batches:
        truth = (batch.mask >= INSIDE) & (batch.valid > 0)
        patients = [str(number) for number in batch.bags.tolist()]
        for name, mask in masks.items():
            pooled[name].add(patients, mask(batch) & (batch.valid > 0), truth)
    return {name: found.scores for name, found in pooled.items()}


def above_half(logits: Tensor) -> Tensor:
    """Return (B, D, H, W) bool of (B, 1, D, H, W) logits."""
    return torch.sigmoid(logits[:, 0].float()) >= INSIDE
