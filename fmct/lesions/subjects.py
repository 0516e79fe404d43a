"""Whose series lesions are looked for in: name, split and how to read them, from a store or from anywhere else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fmct.data.cohort import Cohort
from fmct.data.mask_bank import MASK_SCALE
from fmct.data.mask_files import match_masks
from fmct.data.sample import Sample
from fmct.io.masks import read_mask
from fmct.volume import Volume


@dataclass(frozen=True)
class Source:
    """What is read of a series. brain: a mask on any grid of the same world, or None. lesions: share of each voxel of
    the volume's grid, None where unknown.
    """

    volume: Volume
    brain: Volume | None
    lesions: np.ndarray | None


@dataclass(frozen=True)
class Subject:
    """One series. read(): reads it. key: of its content, by which what was made of it is known again. ignored(): its
    regions that count neither way, a mask on any grid of the same world, or None; ignored_key: of their content.
    """

    patient: str
    series: str
    split: str
    key: str
    read: Callable[[], Source]
    ignored: Callable[[], Volume | None] = lambda: None
    ignored_key: str = ""


def subjects_of(cohort: Cohort, brain_masks: str = "", ignore: str = "") -> list[Subject]:
    """Return the series of a cohort, in manifest order. brain_masks, ignore: folders, matched as masks of lesions are.

    Raises DataError for a folder that is none, or that has a mask for none of the series.
    """
    entries = [sample.entry for sample in cohort.samples]
    brains = match_masks(cohort.store, brain_masks, entries=entries) if brain_masks else {}
    regions = match_masks(cohort.store, ignore, entries=entries) if ignore else {}
    found = []
    for sample in cohort.samples:
        brain, region = brains.get(sample.entry.id), regions.get(sample.entry.id)
        stat = _stat(brain)
        mask = sample.mask.stat().st_mtime_ns if sample.mask else int(sample.mask_known_empty)
        key = f"{sample.entry.content_hash} {stat} {mask} {sample.lesion_mm3:g}"
        reader = partial(_read, cohort, sample, brain)
        ignored = partial(_mask_of, region)
        found.append(
            Subject(sample.patient, sample.entry.id, sample.split, key, reader, ignored, str(_stat(region) or ""))
        )
    return found


def of_split(subjects: Sequence[Subject], split: str) -> list[Subject]:
    """Return the subjects of a split."""
    return [subject for subject in subjects if subject.split == split]


def _stat(path: Path | None) -> tuple[int, ...]:
    return (path.stat().st_size, path.stat().st_mtime_ns) if path else ()


def _mask_of(path: Path | None) -> Volume | None:
    return read_mask(path) if path else None


def _read(cohort: Cohort, sample: Sample, brain: Path | None) -> Source:
    volume = cohort.store.volume(sample.entry)
    share = None
    if sample.mask is not None:
        box = cohort.masks.read(sample.entry, sample.mask, 0, (0, 0, 0), sample.entry.shape)
        share = box.astype(np.float32) / MASK_SCALE
    elif sample.mask_known_empty:
        share = np.zeros(volume.shape, dtype=np.float32)
    return Source(volume, _mask_of(brain), share)
