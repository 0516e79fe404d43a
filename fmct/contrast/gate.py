"""The gate: a scan in, a call out. `yes`, `no`, or `uncertain` with a reason; never a number that means nothing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fmct.contrast.hu_baseline import baseline_in
from fmct.contrast.hu_features import scan_features
from fmct.contrast.tile_reader import calibrated_probability, call_of, read_contrast
from fmct.errors import ArtefactError
from fmct.publish.load_model import PublishedModel, load_model
from fmct.tiling import Scan
from fmct.volume import Volume

KIND = "contrast"
MIN_SLICES, MIN_EXTENT_MM = 8, 20.0
MIN_BODY = 0.01
"""Below this share of voxels above −500 HU there is no body to look at."""


@dataclass(frozen=True)
class ContrastCall:
    """What is said of one scan.

    probability: calibrated, NaN where the scan cannot be judged. phase: of fmct.models.contrast.PHASES; seconds: after
    the injection; None where the model tells none. decision: `yes`, `no`, `uncertain`. tiles: (lowest z, highest z in
    mm RAS, probability of the tile alone, weight). reason: why a scan is not judged, "" where it is.
    baseline_probability: of the HU baseline beside the model, None without one. phases: {phase: probability}.
    """

    probability: float
    phase: str | None
    seconds: float | None
    decision: str
    tiles: list[tuple[float, float, float, float]]
    baseline_probability: float | None = None
    reason: str = ""
    phases: Mapping[str, float] = field(default_factory=dict)


class ContrastGate:
    """A contrast model, ready for volumes of any body part and coverage."""

    def __init__(self, model: PublishedModel, *, precision: str = "auto") -> None:
        if model.record.kind != KIND:
            raise ArtefactError(
                f"{model.origin}: a {model.record.kind} model cannot say whether there is contrast. Export a run of "
                "recipe finetune.contrast and name its folder."
            )
        self.model = model
        self.precision = precision

    def predict(self, volume: Volume) -> ContrastCall:
        """Return the call on a volume. Raises DataError for another modality than the model's."""
        self.model.preprocessing.check_modality(volume.modality)
        reason = why_not(volume.voxels, volume.spacing)
        return undecided(reason) if reason else self.of_scan(self.model.preprocessing.scan(volume))

    def of_scan(self, scan: Scan) -> ContrastCall:
        """Return the call on what is cut of a series (of model.preprocessing.scan, or of a store's levels)."""
        spacing = np.linalg.norm(scan.affine[:3, :3], axis=0) * np.asarray(scan.factor)
        reason = why_not(scan.voxels, spacing, scale=scan.scale)
        if reason:
            return undecided(reason)
        found = read_contrast(self.model, scan, precision=self.precision)
        if not bool(torch.isfinite(found.logits).all()):
            return undecided("the model's logits are not finite: it was trained on nothing like this")
        probability = calibrated_probability(self.model, float(found.logits[0]))
        return ContrastCall(
            probability=probability,
            phase=found.told.get("phase"),
            seconds=found.told.get("seconds"),
            decision=call_of(self.model, probability),
            tiles=[(t.z_low_mm, t.z_high_mm, t.probability, t.weight) for t in found.tiles],
            baseline_probability=self._by_baseline(scan),
            phases=found.phases,
        )

    def _by_baseline(self, scan: Scan) -> float | None:
        baseline = baseline_in(self.model.folder)
        return baseline.calls(scan_features(scan)[None])[0].probability if baseline is not None else None


def load_gate(path: str | Path, *, device: torch.device | str | None = None, precision: str = "auto") -> ContrastGate:
    """Return the gate of a model folder or hub id. Raises ArtefactError, also for a model of another kind."""
    return ContrastGate(load_model(path, device=device), precision=precision)


def undecided(reason: str) -> ContrastCall:
    """Return the call on a scan that cannot be judged."""
    return ContrastCall(math.nan, None, None, "uncertain", [], reason=reason)


def why_not(voxels: np.ndarray, spacing_mm: np.ndarray, *, scale: float = 1.0) -> str:
    """Return why (D, H, W) voxels, in HU when multiplied by `scale`, cannot be judged; "" where they can.

    A volume that is not finite, constant, without a body, or of a few slices, such as a localiser.
    """
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        return f"{int((~np.isfinite(voxels)).sum())} voxels are NaN or infinite"
    shape, extents = voxels.shape, np.asarray(spacing_mm) * voxels.shape
    if min(shape) < MIN_SLICES or extents.min() < MIN_EXTENT_MM:
        sides, lengths = (" × ".join(f"{n:.0f}" for n in values) for values in (shape, extents))
        return (
            f"{sides} voxels over {lengths} mm are no volume: a localiser or a few slices. At least {MIN_SLICES} and "
            f"{MIN_EXTENT_MM:g} mm on each axis are needed"
        )
    coarse = voxels[:: max(1, shape[0] // 64), :: max(1, shape[1] // 64), :: max(1, shape[2] // 64)]
    if coarse.min() == coarse.max() and voxels.min() == voxels.max():
        return f"every voxel is {float(voxels.flat[0]) * scale:g} HU"
    body = float((coarse * np.float32(scale) > -500).mean())
    if body < MIN_BODY:
        return f"no body: a share of {body:.2g} lies above −500 HU"
    return ""
