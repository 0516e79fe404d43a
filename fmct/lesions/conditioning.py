"""A series before its intensities become the networks': working grid, brain mask, bias field, vessels filled in."""

from dataclasses import dataclass, field, replace

import numpy as np

from fmct.data.mask_files import mask_on_grid
from fmct.errors import ConfigError, DataError
from fmct.lesions.bias_field import BiasFieldConfig, correct_bias
from fmct.lesions.brain_mask import brain_mask
from fmct.lesions.vessels import VesselRules, remove_vessels
from fmct.normalise import Normalisation, already_normalised, check_sign
from fmct.shapes import Triple, triple_of_floats
from fmct.tiling import plan_tiles
from fmct.volume import AIR_HU, Volume
from fmct.windows import Window

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
        if self.bias_field.enabled and (self.modality == "CT" or self.normalisation.signed):
            raise ConfigError(
                "prepare.bias_field: N4 takes the logarithm of magnitudes, which HU and signed values (QSM) are not."
            )


@dataclass(frozen=True)
class Conditioned:
    """One series on the working grid before its intensities become the networks': bias and vessels are taken out.

    volume: float32; inside, vessels: bool, and share (of each voxel that is lesion, None where unknown) on its grid.
    """

    volume: Volume
    inside: np.ndarray
    vessels: np.ndarray
    share: np.ndarray | None


def conditioned(
    volume: Volume,
    config: PreparationConfig,
    *,
    sign: str,
    brain: Volume | None = None,
    lesions: np.ndarray | None = None,
    where: str = "",
) -> Conditioned:
    """Return a series as normalisation finds it; arguments and errors as of `prepare`."""
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
    return Conditioned(replace(volume, voxels=values), inside, vessels, share)


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
