"""Stage normalise: from a series to what the networks see, in which lesions are bright whatever the sequence.

In order: the working grid, the bias field, vessels filled in, the radial symmetry map, intensities, the brain's box.
What leads back to the series' own grid is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from fmct.data.lesion_patches import Arrays
from fmct.data.mask_files import mask_on_grid
from fmct.errors import ConfigError, DataError
from fmct.lesions.bias_field import BiasFieldConfig, correct_bias
from fmct.lesions.brain_mask import brain_mask
from fmct.lesions.symmetry import symmetry_map
from fmct.lesions.vessels import VesselRules, remove_vessels
from fmct.normalise import Normalisation, already_normalised, check_sign, normalise_volume
from fmct.shapes import Triple, TripleF, triple_of_floats
from fmct.tiling import plan_tiles
from fmct.volume import AIR_HU, Volume
from fmct.windows import Window, apply_windows

BRAINS = ("given", "found", "whole")
INSIDE = 0.5


@dataclass(frozen=True)
class PreparationConfig:
    """How a series is prepared.

    modality: MR, or CT with its windows (one). normalisation: of MR (see fmct.normalise). spacing_mm: of the working
    grid (z, y, x), null for the series' own. brain: where lesions are looked for: `given` (brain_masks, a folder
    matched as the lesions' masks are), `found` (by fmct.lesions.brain_mask) or `whole` (everywhere). bias_field: N4,
    which signed values refuse. fill_vessels: replace vessels by what is around them, by the rules `vessels`.
    symmetry_radii_mm, symmetry_alpha: of the radial symmetry map. margin_mm: kept around the brain's box.
    """

    modality: str = "MR"
    normalisation: Normalisation = field(default_factory=lambda: Normalisation("zscore_mask"))
    windows: list[Window] = field(default_factory=list)
    spacing_mm: list[float] | None = None
    brain: str = "given"
    brain_masks: str = ""
    bias_field: BiasFieldConfig = field(default_factory=lambda: BiasFieldConfig(enabled=False))
    fill_vessels: bool = False
    vessels: VesselRules = field(default_factory=VesselRules)
    symmetry_radii_mm: list[float] = field(default_factory=lambda: [1.5, 2.5, 4.0])
    symmetry_alpha: float = 2.0
    margin_mm: float = 6.0

    def __post_init__(self) -> None:
        if self.brain not in BRAINS:
            raise ConfigError(f"prepare.brain: expected one of {', '.join(BRAINS)}, got {self.brain!r}.")
        if (self.modality == "CT") != (self.normalisation.kind == "none") or (self.modality == "CT") != bool(
            self.windows
        ):
            raise ConfigError(
                f"prepare: {self.modality} with normalisation {self.normalisation.kind} and {len(self.windows)} "
                "windows. CT has HU and takes one window and kind none; MR takes a normalisation and no window."
            )


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
    check_sign(sign)
    _check_modality(volume, config, where)
    # Bias field, vessels and symmetry are of magnitudes as acquired: a normalised series is refused whatever its kind.
    already_normalised(volume.facts, Normalisation(), where=where)
    if sign == "bright" and config.normalisation.kind == "max_invert":
        raise ConfigError("prepare: max_invert turns dark lesions bright; with lesion_sign bright it would hide them.")
    inside = brain_mask_of(volume, config, brain, where)
    volume, inside, share = _on_working_grid(volume, inside, lesions, config)
    if not inside.any():
        raise DataError(
            f"{where}: its brain mask is empty, so that there is nowhere to look for lesions. Give the series' own "
            "mask, or prepare.brain=found."
        )
    if config.bias_field.enabled:
        values, _ = correct_bias(volume.voxels, inside, volume.spacing.tolist(), config.bias_field, where=where)
        volume = replace(volume, voxels=values)
    spacing = volume.spacing.tolist()
    values, vessels = volume.voxels.astype(np.float32), np.zeros(inside.shape, dtype=bool)
    if config.fill_vessels:
        values, vessels = remove_vessels(values, inside, spacing, sign=sign, rules=config.vessels)
    symmetry = symmetry_map(
        values, spacing, radii_mm=config.symmetry_radii_mm, sign=sign, alpha=config.symmetry_alpha, mask=inside
    )
    image = _image(replace(volume, voxels=values), inside, config, sign, where)
    box = _box(inside, [int(np.ceil(config.margin_mm / s)) for s in spacing])
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array([s.start for s in box])
    truth = np.zeros(inside.shape, dtype=bool) if share is None else _lesions(share)
    parts = [np.ascontiguousarray(part[box]) for part in (image, symmetry, inside, vessels, truth)]
    return Prepared(np.stack(parts[:2]).astype(np.float32), *parts[2:], known=share is not None, affine=affine)


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


def brain_mask_of(volume: Volume, config: PreparationConfig, given: Volume | None, where: str) -> np.ndarray:
    """Return where lesions are looked for, bool on the volume's grid. Raises DataError when a given mask is absent."""
    if config.brain == "whole":
        return np.ones(volume.shape, dtype=bool)
    if config.brain == "found":
        return brain_mask(volume, where=where)
    if given is None:
        raise DataError(
            f"{where}: it has no brain mask. Name the folder of masks (prepare.brain_masks), or say "
            "prepare.brain=found or whole."
        )
    if given.shape == volume.shape and np.allclose(given.affine, volume.affine, atol=1e-3):
        return given.voxels > INSIDE
    return mask_on_grid(given, volume.shape, volume.affine) >= INSIDE


def _check_modality(volume: Volume, config: PreparationConfig, where: str) -> None:
    if volume.modality != config.modality:
        raise DataError(
            f"{where}: is {volume.modality}, and this detector takes {config.modality}: lesions of one look like "
            f"nothing of the other. Use a detector of {volume.modality}, or correct the modality that it was read with."
        )


def _on_working_grid(
    volume: Volume, inside: np.ndarray, share: np.ndarray | None, config: PreparationConfig
) -> tuple[Volume, np.ndarray, np.ndarray | None]:
    """Return volume, mask and lesions on the working grid: the series' own, or one of spacing_mm about its middle."""
    if config.spacing_mm is None:
        return volume, inside, share
    spacing = triple_of_floats(config.spacing_mm, "prepare.spacing_mm")
    grid = plan_tiles(volume.shape, volume.affine, size=(1, 1, 1), spacing_mm=spacing, overlap=0.0, whole=True)
    shape: Triple = grid.shape
    air = float(AIR_HU) if volume.modality == "CT" else 0.0
    shifted = replace(volume, voxels=volume.voxels.astype(np.float32) - air)
    voxels = mask_on_grid(shifted, shape, grid.affine) + np.float32(air)
    parts = [
        None
        if part is None
        else mask_on_grid(Volume(part.astype(np.float32), volume.affine, "mask", "fraction"), shape, grid.affine)
        for part in (inside, share)
    ]
    assert parts[0] is not None
    return replace(volume, voxels=voxels, affine=grid.affine), parts[0] >= INSIDE, parts[1]


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
