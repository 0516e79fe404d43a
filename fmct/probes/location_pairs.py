"""Pairs of crops for the location probe: drawn once by seed, stored, and the same for every encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmct.artefacts import read_json, write_json
from fmct.errors import ArtefactError
from fmct.randomness import generator
from fmct.shapes import Triple, triple

FORMAT = ("fmct-location-pairs", "1.0")
CROP_MM = 48.0
BODY_SHARE = 0.7
REGION_MM = 200.0  # crops further apart along z than about one body region are told apart by their organs alone
_TRIES = 400


@dataclass(frozen=True)
class PairSettings:
    """How pairs are drawn. crop: voxels (z, y, x) at spacing_mm; body_above: what is body, in HU for CT."""

    crop: Triple
    spacing_mm: tuple[float, float, float]
    body_above: float
    pairs: int
    seed: int


@dataclass(frozen=True)
class SeriesPairs:
    """The pairs of one series. first, second: (P, 3) first voxels of the crops (z, y, x) on the probe's grid.

    counted: per axis, whether the series is at least two crops long there. offset_mm: (P, 3), second minus first.
    """

    entry: str
    patient: str
    first: np.ndarray
    second: np.ndarray
    counted: tuple[bool, bool, bool]
    offset_mm: np.ndarray


def crop_voxels(spacing_mm: Sequence[float], patch: Sequence[int]) -> Triple:
    """Return the crop nearest to CROP_MM per axis that the patch divides, at least one patch."""
    sides = [max(1, round(CROP_MM / (s * p))) * p for s, p in zip(spacing_mm, patch, strict=True)]
    return triple(sides, "crop")


def draw_pairs(entry: str, patient: str, hu: np.ndarray, settings: PairSettings) -> SeriesPairs | None:
    """Return the pairs of one series, (D, H, W) on the probe's grid, or None when it has none.

    Both crops lie wholly inside the series and hold at least BODY_SHARE of body; they do not overlap; along z they
    are at most REGION_MM apart. The series must be two crops long on at least one axis.
    """
    crop, spacing = np.asarray(settings.crop), np.asarray(settings.spacing_mm)
    counted = np.asarray(hu.shape) >= 2 * crop
    if not counted.any() or (np.asarray(hu.shape) < crop).any():
        return None
    share = body_share(hu > settings.body_above, settings.crop)
    places = np.argwhere(share >= BODY_SHARE)
    if len(places) < 2:
        return None
    random = generator(settings.seed, "location-pairs", entry)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(_TRIES * settings.pairs):
        a, b = places[random.integers(len(places), size=2)]
        apart = np.abs(b - a)
        if (apart >= crop).any() and apart[0] * spacing[0] <= REGION_MM:
            pairs.append((a, b))
            if len(pairs) == settings.pairs:
                break
    if len(pairs) < 2:
        return None
    first, second = (np.stack(part) for part in zip(*pairs, strict=True))
    z, y, x = (bool(c) for c in counted)
    return SeriesPairs(entry, patient, first, second, (z, y, x), (second - first) * spacing)


def body_share(body: np.ndarray, crop: Triple) -> np.ndarray:
    """Return the share of body in every crop, (D − d + 1, H − h + 1, W − w + 1), from one summed-volume table."""
    table = np.pad(body.astype(np.int64), ((1, 0),) * 3).cumsum(0).cumsum(1).cumsum(2)
    for axis, side in enumerate(crop):
        low = np.take(table, np.arange(table.shape[axis] - side), axis)
        table = np.take(table, np.arange(side, table.shape[axis]), axis) - low
    return table / float(np.prod(crop))


def save_pairs(path: Path, pairs: Sequence[SeriesPairs], settings: PairSettings, store: str) -> None:
    """Write pairs as stamped JSON; `store` is the fingerprint of the store that they were drawn from."""
    rows = [
        {
            "entry": p.entry,
            "patient": p.patient,
            "counted": list(p.counted),
            "first": p.first.tolist(),
            "second": p.second.tolist(),
        }
        for p in pairs
    ]
    write_json(path, *FORMAT, {"store": store, "settings": _plain(settings), "series": rows})


def load_pairs(path: Path, settings: PairSettings, store: str) -> list[SeriesPairs]:
    """Return the pairs in a file. Raises ArtefactError when they were drawn otherwise, or from another store."""
    tree = read_json(path, *FORMAT)
    if tree.get("store") != store or tree.get("settings") != _plain(settings):
        raise ArtefactError(
            f"{path}: these pairs were drawn from another store or with other settings ({tree.get('settings')}). "
            "Give another --output, or delete the file to draw anew."
        )
    spacing = np.asarray(settings.spacing_mm)
    series = []
    for row in tree["series"]:
        first, second = np.asarray(row["first"]), np.asarray(row["second"])
        z, y, x = row["counted"]
        series.append(SeriesPairs(row["entry"], row["patient"], first, second, (z, y, x), (second - first) * spacing))
    return series


def _plain(settings: PairSettings) -> dict[str, Any]:
    return {
        "crop": list(settings.crop),
        "spacing_mm": [float(s) for s in settings.spacing_mm],
        "body_above": float(settings.body_above),
        "pairs": settings.pairs,
        "seed": settings.seed,
    }
