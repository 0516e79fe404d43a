"""What is known of a window: its labels by what its mask shows, the patient's, and whose bag it lies in."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from fmct.data.cohort import Cohort
from fmct.data.sample import Sample
from fmct.data.window_config import WindowsConfig
from fmct.data.window_reader import Window


class WindowLabels:
    """Labels of the windows of one split.

    A window is positive for the target that masks show when it holds at least v_min_mm3 of lesion, negative when it
    holds none and the mask is known, and unknown in between. Without a known mask a window of a negative series is
    negative, and one of a positive series is unknown, unless it is the whole series or the finding is a property of the
    whole scan (label_scope=global).
    """

    def __init__(self, cohort: Cohort, split: str, config: WindowsConfig, *, device: torch.device) -> None:
        self._samples = cohort.of(split)
        self._patients = {patient: number for number, patient in enumerate(cohort.patients(split))}
        self._target = cohort.mask_target if cohort.targets else None
        self._targets, self._config, self._device = len(cohort.targets), config, device

    def of(self, windows: Sequence[Window], mask: torch.Tensor, valid: torch.Tensor) -> dict[str, Any]:
        """Return the fields of a LabelledBatch that need no voxels but mask and valid (B, D, H, W)."""
        samples = [self._samples[window.sample] for window in windows]
        spacing = torch.tensor([window.place.spacing_mm for window in windows], dtype=torch.float32)
        known = torch.tensor([sample.has_mask for sample in samples], dtype=torch.bool)
        return {
            "labels": self._labels(windows, samples, mask, valid),
            "spacing": self._move(spacing),
            "patient_labels": self._move(self._table([list(sample.labels) for sample in samples])),
            "has_mask": self._move(known),
            "has_pair": self._move(torch.tensor([sample.pair is not None for sample in samples])),
            "pair_weight": self._move(torch.tensor([sample.pair_weight for sample in samples], dtype=torch.float32)),
            "bags": self._move(torch.tensor([self._patients[s.patient] for s in samples], dtype=torch.int64)),
            "draws": torch.tensor([window.draw for window in windows], dtype=torch.int64),
            "entries": [window.entry for window in windows],
            "kinds": [window.kind for window in windows],
        }

    def _labels(
        self, windows: Sequence[Window], samples: Sequence[Sample], mask: torch.Tensor, valid: torch.Tensor
    ) -> torch.Tensor:
        rows = [
            [self._without_mask(label, window) for label in sample.labels]
            for window, sample in zip(windows, samples, strict=True)
        ]
        labels = self._move(self._table(rows))
        if self._target is None:
            return labels
        voxel = torch.tensor([math.prod(w.place.spacing_mm) for w in windows], dtype=torch.float64)
        held = (mask * valid).sum(dim=(1, 2, 3), dtype=torch.float64) * self._move(voxel)
        shown = torch.where(held >= self._config.v_min_mm3, 1.0, torch.where(held > 0, math.nan, 0.0)).float()
        known = self._move(torch.tensor([sample.has_mask for sample in samples]))
        labels[:, self._target] = torch.where(known, shown, labels[:, self._target])
        return labels

    def _without_mask(self, label: float, window: Window) -> float:
        """Return the label of a window of a series with this label, as long as no mask says more."""
        known = label != 1 or window.place.whole or self._config.label_scope == "global"
        return label if known else math.nan

    def _table(self, rows: list[list[float]]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.float32).view(len(rows), self._targets)

    def _move(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._device, non_blocking=True)
