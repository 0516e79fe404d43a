"""Stage normalise: from a series to what the networks see, in which lesions are bright whatever the sequence.

In order: the working grid, the bias field, vessels filled in (fmct.lesions.conditioning), then the radial symmetry map,
intensities, the brain's box. What leads back to the series' own grid is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from fmct.data.lesion_patches import Arrays
from fmct.errors import DataError
from fmct.lesions.conditioning import INSIDE, PreparationConfig, conditioned
from fmct.lesions.symmetry import symmetry_map
from fmct.normalise import normalise_volume
from fmct.shapes import TripleF, triple_of_floats
from fmct.volume import Volume
from fmct.windows import apply_windows

__all__ = ["PreparationConfig", "Prepared", "load_prepared", "prepare", "save_prepared", "spacing_of", "to_grid"]


@dataclass(frozen=True)
class Prepared:
    """One series as the networks see it.

    channels: (2, D, H, W) float32: the image, lesions bright and 0 outside the brain, and the symmetry map. brain,
    vessels, lesions: (D, H, W) bool; known: whether the lesions are. affine: (4, 4), voxel (z, y, x) → RAS mm.
    """

    channels: np.ndarray
    brain: np.ndarray
    vessels: np.ndarray
    lesions: np.ndarray
    known: bool
    affine: np.ndarray

    @property
    def spacing_mm(self) -> TripleF:
        """Of a voxel (z, y, x)."""
        return triple_of_floats(np.linalg.norm(self.affine[:3, :3], axis=0).tolist(), "spacing")

    @property
    def arrays(self) -> Arrays:
        """What patches are cut from."""
        return Arrays(self.channels, self.lesions, self.spacing_mm)


def prepare(
    volume: Volume,
    config: PreparationConfig,
    *,
    sign: str,
    brain: Volume | None = None,
    lesions: np.ndarray | None = None,
    where: str = "",
) -> Prepared:
    """Return a series prepared. lesions: share of each voxel of the volume's grid, None where unknown.

    Raises DataError for another modality, an empty brain mask, and what normalisation refuses; `where` names it.
    """
    found = conditioned(volume, config, sign=sign, brain=brain, lesions=lesions, where=where)
    volume, inside, spacing = found.volume, found.inside, found.volume.spacing.tolist()
    symmetry = symmetry_map(
        volume.voxels, spacing, radii_mm=config.symmetry_radii_mm, sign=sign, alpha=config.symmetry_alpha, mask=inside
    )
    image = _image(volume, inside, config, sign, where)
    box = _box(inside, [int(np.ceil(config.margin_mm / s)) for s in spacing])
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array([s.start for s in box])
    truth = np.zeros(inside.shape, dtype=bool) if found.share is None else _lesions(found.share)
    parts = [np.ascontiguousarray(part[box]) for part in (image, symmetry, inside, found.vessels, truth)]
    return Prepared(np.stack(parts[:2]).astype(np.float32), *parts[2:], known=found.share is not None, affine=affine)


def to_grid(
    values: np.ndarray, affine: np.ndarray, shape: Sequence[int], target: np.ndarray, *, order: int
) -> np.ndarray:
    """Return values (D, H, W) on another grid of `shape` and (4, 4) affine `target`; outside it is 0.

    order: 0 for labels (nearest), 1 for scores.
    """
    z, y, x = (int(n) for n in shape)
    matrix = np.linalg.solve(affine, target)
    # Equal grids meet at whole voxels: what floats leave of them must not move a label.
    matrix = np.where(np.abs(matrix - np.rint(matrix)) < 1e-6, np.rint(matrix), matrix)
    return ndimage.affine_transform(values, matrix, output_shape=(z, y, x), order=order, mode="constant", cval=0)


def save_prepared(path: Path, prepared: Prepared) -> None:
    """Write it as npz, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    content: Any = {name: np.asarray(value) for name, value in vars(prepared).items()}
    with open(temporary, "wb") as file:
        np.savez(file, **content)
    temporary.replace(path)


def load_prepared(path: Path) -> Prepared:
    """Return what `save_prepared` wrote. Raises DataError."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            fields: dict[str, Any] = {name: kept[name] for name in Prepared.__annotations__}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a prepared series ({error}). Run stage=normalise again.") from None
    return Prepared(**{**fields, "known": bool(fields["known"])})


def spacing_of(path: Path) -> list[float]:
    """Return the voxel's sides (z, y, x) in mm of what `save_prepared` wrote; the voxels are not read."""
    with np.load(path, allow_pickle=False) as kept:
        return np.linalg.norm(kept["affine"][:3, :3], axis=0).tolist()


def _lesions(share: np.ndarray) -> np.ndarray:
    """Return the lesions' voxels: of one that a coarse grid leaves nowhere half full, its fullest voxel."""
    found = share >= INSIDE
    labels = np.zeros(share.shape, dtype=np.int32)
    ndimage.label(share > 0, np.ones((3, 3, 3)), output=labels)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        own = labels[box] == number
        if not found[box][own].any():
            fullest = np.unravel_index(int(np.argmax(np.where(own, share[box], -1))), own.shape)
            found[box][fullest] = True
    return found


def _image(volume: Volume, inside: np.ndarray, config: PreparationConfig, sign: str, where: str) -> np.ndarray:
    """Return the image, lesions bright, 0 outside the brain."""
    if config.modality == "CT":
        values = apply_windows(torch.from_numpy(volume.voxels.astype(np.float32))[None], config.windows[:1])[
            0, 0
        ].numpy()
    else:
        values = normalise_volume(volume, config.normalisation, inside, where=where).voxels
    if sign == "dark" and config.normalisation.kind != "max_invert":
        # A percentile's range is turned over in place, other kinds about 0.
        values = 1 - values if config.normalisation.kind in ("percentile", "nyul") else -values
    return np.where(inside, values, 0.0).astype(np.float32)


def _box(inside: np.ndarray, margin: Sequence[int]) -> tuple[slice, ...]:
    box = ndimage.find_objects(inside.astype(np.uint8))[0]
    return tuple(
        slice(max(s.start - m, 0), min(s.stop + m, n)) for s, m, n in zip(box, margin, inside.shape, strict=True)
    )
