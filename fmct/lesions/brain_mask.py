"""Where the brain is: a given mask on the scan's grid, or a plain one from the intensities.

The plain one is Otsu's threshold, an opening that cuts what is thin (scalp, bridges through the skull), the largest
piece left, a closing, and its holes filled: well defined, and good enough to keep vessels and air out of statistics. A
mask from a brain-extraction tool is better; give it as a file.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from fmct.errors import ConfigError, DataError
from fmct.io.masks import read_mask
from fmct.volume import Volume

_FEWEST_VOXELS = 64
_SAME_PLACE_VOXELS = 0.05
_BINS = 256


@dataclass(frozen=True)
class BrainMaskConfig:
    """How the brain is found where no mask is given: the opening's and the closing's radii in mm."""

    opening_mm: float = 4.0
    closing_mm: float = 6.0

    def __post_init__(self) -> None:
        if min(self.opening_mm, self.closing_mm) < 0:
            raise ConfigError(f"brain_mask: radii are not negative; got {self}.")


def brain_mask(
    volume: Volume, given: str | Path | None = None, config: BrainMaskConfig | None = None, *, where: str = ""
) -> np.ndarray:
    """Return the brain as bool (D, H, W) on the volume's grid, read from `given` or found in the intensities.

    Raises DataError that names the mask's file, or begins with `where`: an empty mask, one on another grid, values that
    are not finite, and a series in which nothing stands out.
    """
    if given is not None:
        return _read(Path(given), volume)
    return found_brain(volume.voxels, volume.spacing, config, where=where)


def found_brain(
    values: np.ndarray, spacing_mm: np.ndarray, config: BrainMaskConfig | None = None, *, where: str = ""
) -> np.ndarray:
    """Return the brain as bool (D, H, W), from magnitudes alone."""
    config, at = config or BrainMaskConfig(), f"{where}: " if where else ""
    if not np.isfinite(values).all():
        raise DataError(f"{at}brain mask: the series holds NaN or infinite values.")
    inside = values > otsu(values)
    core = _within(inside, config.opening_mm, spacing_mm)
    labels = np.zeros(values.shape, dtype=np.int32)
    ndimage.label(core, output=labels)
    sizes = np.bincount(labels.ravel())[1:]
    if not sizes.size or sizes.max() < _FEWEST_VOXELS:
        raise DataError(
            f"{at}brain mask: nothing in this series stands out that is thicker than {2 * config.opening_mm:g} mm. "
            "Give a mask file, or take a smaller brain_mask.opening_mm."
        )
    largest = labels == int(sizes.argmax()) + 1
    # Grown back only where there is tissue, so that the opening takes off what is thin and nothing else.
    grown = _around(largest, config.opening_mm, spacing_mm) & inside
    closed = ~_around(~_around(grown, config.closing_mm, spacing_mm), config.closing_mm, spacing_mm)
    return np.asarray(ndimage.binary_fill_holes(closed | grown), dtype=bool)


def otsu(values: np.ndarray) -> float:
    """Return Otsu's threshold (1979): the one with the largest variance between the two classes, of 256 bins.

    The bins end at the 99.9th percentile, so that a few bright voxels do not take them all. A constant image gives its
    value.
    """
    low, high = float(values.min()), float(np.percentile(values, 99.9))
    if not low < high:
        return high
    counts, edges = np.histogram(np.minimum(values, high), bins=_BINS, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts).astype(np.float64)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    means = sums[:-1] / np.maximum(below, 1), (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    return float(edges[1:-1][int(np.argmax(below * above * (means[0] - means[1]) ** 2))])


def _within(mask: np.ndarray, radius_mm: float, spacing_mm: np.ndarray) -> np.ndarray:
    """Return the voxels more than `radius_mm` inside a mask; where the scan cuts it off is no edge."""
    if mask.all():
        return mask
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=spacing_mm)) > radius_mm


def _around(mask: np.ndarray, radius_mm: float, spacing_mm: np.ndarray) -> np.ndarray:
    """Return a mask and all voxels within `radius_mm` of it."""
    if mask.all() or not mask.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing_mm)) <= radius_mm


def _read(path: Path, volume: Volume) -> np.ndarray:
    mask = read_mask(path, volume.orientation)
    first, last = np.zeros(3), np.asarray(volume.shape) - 1
    apart = max(float(np.abs(volume.index(mask.world(corner)) - corner).max()) for corner in (first, last))
    if mask.shape != volume.shape or apart > _SAME_PLACE_VOXELS:
        raise DataError(
            f"{path}: the brain mask lies on another grid: {mask.shape} voxels of {mask.spacing.round(3).tolist()} mm, "
            f"{apart:.1f} voxels off at most; the scan has {volume.shape} of {volume.spacing.round(3).tolist()} mm (z, "
            "y, x). Resample it onto the scan, nearest neighbour."
        )
    inside = mask.voxels > 0.5
    if not inside.any():
        raise DataError(f"{path}: the brain mask is empty. Give one that covers the brain, or none to have it found.")
    return inside
