"""What cannot be in labelled data: each check names the series at fault. Counts of what was left out come back."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from fmct.data.sample import Sample
from fmct.errors import DataError
from fmct.store.reader import Store

_MOST_LISTED = 8


def check_samples(
    store: Store, samples: Sequence[Sample], targets: Sequence[str], mask_target: int | None, *, where: str
) -> list[str]:
    """Return notes about series that are left out. Raises DataError that lists every series at fault.

    Faults: a lesion in the mask of a negative series, an empty mask of a positive one, equal voxels in two splits, and
    a target whose training series are all positive or all negative.
    """
    faults = [*_contradicting_masks(samples, targets, mask_target), *_leaks(samples)]
    if faults:
        more = f"; and {len(faults) - _MOST_LISTED} more" if len(faults) > _MOST_LISTED else ""
        raise DataError(
            f"{where}: {len(faults)} series cannot be as they are labelled. {'; '.join(faults[:_MOST_LISTED])}{more}. "
            "Mend the labels, masks or splits."
        )
    _check_classes(samples, targets, mask_target, where)
    without = [sample for sample in samples if not sample.split]
    notes = [f"{len(without)} of {len(samples)} series are of patients without a split: left out."] if without else []
    bare = Counter(sample.split for sample in samples if sample.split and not sample.labelled)
    notes += [f"{count} series of the split {split} have neither label nor mask." for split, count in bare.items()]
    if not any(sample.split for sample in samples):
        raise DataError(f"{where}: none of the {len(samples)} series of {store.path} has a split.")
    return notes


def _contradicting_masks(samples: Sequence[Sample], targets: Sequence[str], target: int | None) -> list[str]:
    if target is None or not targets:
        return []
    found = []
    for sample in samples:
        label = sample.labels[target]
        name = f"series {sample.entry.id} of patient {sample.patient}"
        if label == 0 and sample.mask is not None:
            found.append(f"{name}: {targets[target]} is 0, but {sample.mask.name} holds {sample.lesion_mm3:.0f} mm³")
        if label == 1 and sample.mask_known_empty:
            found.append(f"{name}: {targets[target]} is 1, but its mask is empty")
    return found


def _leaks(samples: Sequence[Sample]) -> list[str]:
    """Return series that are, voxel for voxel, in two splits."""
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for sample in samples:
        for entry in (sample.entry, sample.pair):
            if entry is not None and sample.split:
                places[entry.voxel_hash].setdefault(sample.split, entry.id)
    return [
        "the same voxels in two splits: " + ", ".join(f"{name} in {split}" for split, name in found.items())
        for found in places.values()
        if len(found) > 1
    ]


def _check_classes(samples: Sequence[Sample], targets: Sequence[str], mask_target: int | None, where: str) -> None:
    """Raise DataError for a target that training cannot learn: nothing known, or one class. A mask has both in it."""
    training = [sample for sample in samples if sample.split == "train"]
    for number, target in enumerate(targets):
        known = {sample.labels[number] for sample in training if not math.isnan(sample.labels[number])}
        if training and (not known or (len(known) == 1 and number != mask_target)):
            what = "has a known" if not known else f"is {'negative' if known == {1.0} else 'positive'} for"
            raise DataError(f"{where}: no series of the split train {what} {target}. Mend the labels or the splits.")
