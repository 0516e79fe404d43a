"""DICOM segmentations as masks, read by highdicom."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fmct.errors import DataError
from fmct.volume import Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_HALF = 0.5  # a fractional segmentation is inside from here on


def read_segmentation(path: Path, *, names: Sequence[str] = ()) -> Volume:
    """Return a DICOM segmentation as Volume of float32 0 or 1, on its own grid.

    names: segment labels to take, whatever their case (empty: all, joined). The grid spans the slices that the file
    holds; slices without a frame in between are empty. Raises DataError for a file that is no regular 3D segmentation
    or has no such segment.
    """
    import highdicom

    try:
        segmentation = highdicom.seg.segread(path)
        numbers = _numbers(path, segmentation, names)
        volume = segmentation.get_volume(segment_numbers=numbers, combine_segments=False, dtype=np.float32)
    except DataError:
        raise
    except Exception as error:  # highdicom and pydicom raise whatever a damaged file leads them to
        raise DataError(f"{path}: not readable as a DICOM segmentation ({type(error).__name__}: {error}).") from None
    inside = np.asarray((volume.array >= _HALF).any(axis=-1), dtype=np.float32)
    # highdicom's affine: (slice, row, column) → LPS mm.
    return Volume(inside, _LPS_TO_RAS @ np.asarray(volume.affine, dtype=np.float64), "mask", "fraction")


def _numbers(path: Path, segmentation: object, names: Sequence[str]) -> list[int]:
    from highdicom.seg import Segmentation

    assert isinstance(segmentation, Segmentation)
    labels = {n: segmentation.get_segment_description(n).segment_label for n in segmentation.segment_numbers}
    wanted = {name.strip().lower() for name in names}
    found = [n for n, label in labels.items() if not wanted or label.strip().lower() in wanted]
    missing = wanted - {labels[n].strip().lower() for n in found}
    if missing:
        raise DataError(f"{path}: no segment called {', '.join(sorted(missing))}; it has {', '.join(labels.values())}.")
    return found
