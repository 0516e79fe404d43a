"""Where the networks' training patches are cut: around lesions, on tiles, and around candidates of the detector."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from fmct.data.lesion_patches import Item
from fmct.data.patches import tile_starts
from fmct.lesions.candidates import Candidate
from fmct.lesions.preparation import Prepared
from fmct.shapes import Triple


def lesion_items(series: str, prepared: Prepared) -> list[Item]:
    """Return an item at the middle of each lesion of a series."""
    return [Item(series, centre, True) for centre in _centres(prepared.lesions)]


def tile_items(series: str, prepared: Prepared, size: Triple, *, positives: bool) -> list[Item]:
    """Return the tiles of a series that show brain, positive where one holds a lesion voxel.

    positives: also those, each voxel in one tile; else the tiles free of lesion alone, half overlapping, as negatives
    beside lesion_items.
    """
    found = []
    for start in tile_starts(prepared.brain.shape, size, overlap=0.0 if positives else 0.5):
        box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        held = bool(prepared.lesions[box].any())
        z, y, x = (a + n // 2 for a, n in zip(start, size, strict=True))
        if prepared.brain[box].any() and (positives or not held):
            found.append(Item(series, (z, y, x), held))
    return found


def candidate_items(series: str, prepared: Prepared, labels: np.ndarray, candidates: Sequence[Candidate]) -> list[Item]:
    """Return an item a candidate, positive where it overlaps a lesion, and one for each lesion that none overlaps."""
    hit = set(np.unique(labels[prepared.lesions]).tolist()) - {0}
    items = [Item(series, c.centre, c.candidate in hit) for c in candidates]
    missed = _components(prepared.lesions)
    found = set(np.unique(missed[labels > 0]).tolist())
    centres = _centres(prepared.lesions)
    return items + [Item(series, centre, True) for n, centre in enumerate(centres, start=1) if n not in found]


def hard_items(series: str, prepared: Prepared, labels: np.ndarray, candidates: Sequence[Candidate]) -> list[Item]:
    """Return the candidates that overlap no lesion as negatives, the highest scores first."""
    hit = set(np.unique(labels[prepared.lesions]).tolist()) - {0}
    wrong = sorted((c for c in candidates if c.candidate not in hit), key=lambda c: (-c.detector_score, c.candidate))
    return [Item(series, c.centre, False) for c in wrong]


def without_doubt(items: Sequence[Item], doubtful: np.ndarray | None, size: Triple) -> list[Item]:
    """Return the items but negatives whose patch of `size` shows a voxel of a region that counts neither way.

    doubtful: bool (D, H, W), None for none. What nobody could call a lesion or not is no example of tissue without one.
    """
    if doubtful is None or not doubtful.any():
        return list(items)
    return [item for item in items if item.positive or not doubtful[_box(item.centre, size)].any()]


def items_tree(items: Sequence[Item]) -> list[list[object]]:
    """Return plain values for JSON."""
    return [[item.series, *item.centre, item.positive] for item in items]


def items_of_tree(tree: Sequence[Sequence[object]]) -> list[Item]:
    """Return what `items_tree` gave."""
    return [Item(str(s), (int(z), int(y), int(x)), bool(p)) for s, z, y, x, p in tree]  # type: ignore[call-overload]


def summary(items: Mapping[str, Sequence[Item]] | Sequence[Item]) -> dict[str, int]:
    """Return how many positives and negatives there are."""
    every = [i for part in items.values() for i in part] if isinstance(items, Mapping) else list(items)
    positives = sum(item.positive for item in every)
    return {"positives": positives, "negatives": len(every) - positives}


def _box(centre: Triple, size: Triple) -> tuple[slice, ...]:
    return tuple(slice(max(0, c - n // 2), max(0, c - n // 2 + n)) for c, n in zip(centre, size, strict=True))


def _components(inside: np.ndarray) -> np.ndarray:
    labels = np.zeros(inside.shape, dtype=np.int32)
    ndimage.label(inside, np.ones((3, 3, 3)), output=labels)
    return labels


def _centres(inside: np.ndarray) -> list[Triple]:
    labels = _components(inside)
    found = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        middle = np.argwhere(labels[box] == number).mean(axis=0) + [s.start for s in box]
        z, y, x = (int(np.floor(c + 0.5)) for c in middle)
        found.append((z, y, x))
    return found
