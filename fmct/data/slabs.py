"""2.5D slabs of a store's series for training, labelled by sparse annotations.

A slab is a few slices, the centre crop in-plane, on the grid on which prediction lays consecutive slabs (see
fmct.tiling.plan_slabs). In a positive patient only an annotated slab is known: whatever lies off the annotated slices
is unknown, never negative. Negatives are slabs of negative patients alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fmct import randomness
from fmct.data.cohort import Cohort, patient_labels
from fmct.data.label_sampler import POSITIVE, UNIFORM, LabelSampler, Pool
from fmct.data.labelled import LabelledLoader
from fmct.data.mask_bank import LesionMask
from fmct.data.pretrain import DrawBatches
from fmct.data.sample import Sample
from fmct.data.slab_config import BudgetConfig, SlabsConfig, check_slabs
from fmct.data.window_config import WindowGrid
from fmct.data.window_labels import WindowLabels
from fmct.data.window_place import Place, lesion_point, sample_turn
from fmct.data.window_reader import Window, WindowReader
from fmct.errors import ConfigError, DataError
from fmct.preprocess import Preprocessing
from fmct.store.manifest import Entry
from fmct.tiling import plan_slabs
from fmct.volume import CANONICAL

_MOST_LISTED = 8


def build_slab_loader(
    cohort: Cohort,
    split: str,
    preprocessing: Preprocessing,
    config: SlabsConfig,
    *,
    seed: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    start_draw: int = 0,
    workers: int = 0,
    prefetch: int = 2,
    device: torch.device | str = "cpu",
) -> LabelledLoader:
    """Return an endless iterable of LabelledBatch of slabs, drawn from (seed, draw) as labelled windows are.

    labels (B, 1): 1 where a slab shows at least v_min_mm3 of annotated lesion, 0 in a negative patient, NaN anywhere
    else. has_mask: of the same slabs, those whose label is known. preprocessing: of mode slabs. batch_size: draws per
    rank. Raises ConfigError or DataError for settings or data that cannot be drawn from: no annotated or no negative
    patient, a scan shorter than one slab, another modality.
    """
    samples = cohort.of(split)
    check_slabs(config)
    check_input(preprocessing)
    if batch_size < 1 or workers < 0:
        raise ConfigError(f"batch_size must be ≥ 1 and workers ≥ 0, got {batch_size} and {workers}.")
    check_samples(samples, preprocessing)
    windows = config.windows
    reader = WindowReader(
        cohort,
        samples,
        LabelSampler(slab_pools(samples, config, split), seed=seed),
        windows,
        WindowGrid(preprocessing.input.size_voxels, preprocessing.input.spacing_mm),
        preprocessing,
        seed=seed,
        places=SlabPlaces(preprocessing, config),
    )
    return LabelledLoader(
        reader,
        DrawBatches(start_draw + rank * batch_size, batch_size * world_size, batch_size),
        SlabLabels(cohort, split, windows, device=torch.device(device)),
        preprocessing.windows,
        [],
        workers=workers,
        prefetch=prefetch,
        device=torch.device(device),
    )


def slab_pools(samples: Sequence[Sample], config: SlabsConfig, split: str) -> list[Pool]:
    """Return the pools of annotated and of negative series, evenly drawn. Raises DataError when one is empty."""
    annotated = tuple(n for n, s in enumerate(samples) if s.labels[0] == 1 and s.mask is not None)
    negative = tuple(n for n, s in enumerate(samples) if s.labels[0] == 0)
    if not annotated or not negative:
        raise DataError(
            f"slabs: of the {len(samples)} series of the split {split}, {len(annotated)} are positive with a mask and "
            f"{len(negative)} negative; a slab classifier needs both. A positive patient's slabs without annotation "
            "are unknown and can stand in for neither. Mend labels, masks or splits, or raise budget.masks."
        )
    return [Pool(POSITIVE, annotated, config.positive), Pool(UNIFORM, negative, 1 - config.positive)]


def check_input(preprocessing: Preprocessing) -> None:
    """Raise ConfigError unless series are cut into slabs, in the orientation in which z runs along the body."""
    if preprocessing.input.mode != "slabs":
        raise ConfigError(f"slabs: the input's mode is {preprocessing.input.mode!r}, expected 'slabs'.")
    if preprocessing.orientation != CANONICAL or not preprocessing.windows:
        raise ConfigError(
            f"slabs: need fixed intensity windows and the orientation {CANONICAL}; this encoder's is "
            f"{preprocessing.orientation}, with {len(preprocessing.windows)} windows. Take one that fmct trained."
        )


def check_samples(samples: Sequence[Sample], preprocessing: Preprocessing) -> None:
    """Raise DataError for a series of another modality, or a list of those shorter than one slab."""
    for sample in samples:
        preprocessing.check_modality(sample.entry.modality)
    short = [s for s in samples if not tall_enough(s.entry.shape, s.entry.spacing_mm, preprocessing)]
    if short:
        listed = ", ".join(
            f"series {s.entry.id} of patient {s.patient}: {s.entry.shape[0] * s.entry.spacing_mm[0]:.1f} mm"
            for s in short[:_MOST_LISTED]
        )
        raise DataError(f"{len(short)} series are {too_short(preprocessing)} ({listed}). Leave them out: data.filter.")


def tall_enough(shape: Sequence[int], spacing_mm: Sequence[float], preprocessing: Preprocessing) -> bool:
    """Return whether a series of this shape and spacing holds one slab along z."""
    return shape[0] * spacing_mm[0] >= slab_height(preprocessing) * (1 - 1e-6)


def slab_height(preprocessing: Preprocessing) -> float:
    """Return the height of a slab in mm."""
    spacing = preprocessing.input.spacing_mm
    assert spacing is not None, "slabs have a spacing"
    return preprocessing.input.size_voxels[0] * spacing[0]


def too_short(preprocessing: Preprocessing) -> str:
    """Return how a refusal says that a series is shorter than a slab."""
    return (
        f"shorter than one slab of {slab_height(preprocessing):g} mm ({preprocessing.input.size_voxels[0]} slices): "
        "most of what the network would see is air"
    )


@dataclass(frozen=True)
class SlabPlaces:
    """Where slabs lie: on the series' slab grid, at any slice of it, centred in-plane."""

    preprocessing: Preprocessing
    config: SlabsConfig

    def __call__(self, entry: Entry, *, kind: str, mask: LesionMask | None, random: np.random.Generator) -> Place:
        """Return a slab of a series: around a lesion's voxel, every lesion alike, or anywhere."""
        spec = self.preprocessing.input
        assert spec.spacing_mm is not None, "slabs have a spacing"
        grid = plan_slabs(entry.shape, np.array(entry.affine), size=spec.size_voxels, spacing_mm=spec.spacing_mm)
        step = np.asarray(grid.spacing_mm) / np.asarray(entry.spacing_mm)
        turn, magnification = sample_turn(self.config.spatial, random)
        slices, last = spec.size_voxels[0], max(grid.shape[0] - spec.size_voxels[0], 0)
        first = int(random.random() * (last + 1))
        if kind == POSITIVE and mask is not None and not mask.empty:
            at = round(float((lesion_point(mask, random)[0] - grid.origin[0]) / step[0]))
            margin = (1 - self.config.middle) / 2 * (slices - 1)
            reach = math.floor(slices - 1 - 2 * margin + 1e-9)
            first = at - math.ceil(margin - 1e-9) - int(random.random() * (reach + 1))
        start = np.array([min(max(first, 0), last), *grid.starts[0, 1:]], dtype=np.float64)
        centre = np.asarray(grid.origin) + (start + (np.asarray(spec.size_voxels) - 1) / 2) * step
        scaled = np.array([1.0, magnification, magnification])
        steps = np.diag(1 / np.asarray(entry.spacing_mm)) @ turn @ np.diag(np.asarray(grid.spacing_mm) / scaled)
        spacing = np.asarray(grid.spacing_mm) / scaled
        return Place(
            steps=steps,
            centre=centre,
            size=spec.size_voxels,
            spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
            whole=False,
        )


class SlabLabels(WindowLabels):
    """Labels of slabs under sparse annotation: a slab without annotation in a positive patient is unknown."""

    def of(self, windows: Sequence[Window], mask: torch.Tensor, valid: torch.Tensor) -> dict[str, object]:
        """Return the fields of a LabelledBatch that need no voxels but mask and valid (B, D, H, W)."""
        facts = super().of(windows, mask, valid)
        patients, shown = facts["patient_labels"], facts["labels"]
        known = (patients == 0) | ((patients == 1) & (shown == 1))
        labels = torch.where(known, patients, torch.nan)
        return {**facts, "labels": labels, "has_mask": known[:, 0]}


def within_budget(cohort: Cohort, budget: BudgetConfig, *, split: str = "train") -> Cohort:
    """Return the cohort with as many labels and masks in a split as the budget allows; other splits stay.

    Raises ConfigError for more than there are.
    """
    samples = cohort.of(split)
    known = patient_labels(samples, 0)
    masked = {s.patient for s in samples if s.mask is not None}
    orders = {label: _drawn([p for p, v in known.items() if v == label], budget.seed) for label in (1.0, 0.0)}
    total = sum(map(len, orders.values()))
    if budget.patients > total:
        raise ConfigError(f"budget.patients={budget.patients}: {total} patients of the split {split} have a label.")
    count = budget.patients or total
    positives = round(count * len(orders[1.0]) / total) if total else 0
    used = {*orders[1.0][:positives], *orders[0.0][: count - positives]}
    candidates = [patient for patient in orders[1.0][:positives] if patient in masked]
    if budget.masks > len(candidates):
        raise ConfigError(
            f"budget.masks={budget.masks}: {len(candidates)} of the patients whose label is used have a mask."
        )
    drawn = set(candidates[: budget.masks or len(candidates)])
    kept = cohort.keep(sorted(used), split=split)
    return replace(
        kept,
        samples=tuple(
            replace(s, mask=None, lesion_mm3=0.0) if s.split == split and s.mask and s.patient not in drawn else s
            for s in kept.samples
        ),
    )


def _drawn(patients: Sequence[str], seed: int) -> list[str]:
    ordered = sorted(patients)
    return [ordered[number] for number in randomness.permutation(len(ordered), seed, "label budget").tolist()]
