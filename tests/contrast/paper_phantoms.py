"""SYNTHETIC necks and a chest in tiny, for the published contrast system: an ellipse, bone, two vessels."""

from pathlib import Path

import nibabel
import numpy as np

from fmct.contrast.paper_settings import BodyPartProfile, LegacySwitches, PaperRegistration, Preparation
from fmct.phantoms.body import axial_affine
from fmct.randomness import generator
from fmct.volume import Volume

SPACING = (3.0, 2.0, 2.0)
SHAPE = (20, 40, 40)
PROFILE = BodyPartProfile("tiny", 14, 2, 9, side=32, area_cm2=[8.0, 40.0], lung_share=[0.0, 0.15])
REGISTRATION = PaperRegistration(sampling=0.2, iterations=20, shrink=[2, 1], smoothing_mm=[2.0, 0.0])
WORDS = [
    "input.spacing_mm=[3,2,2]",
    "input.profile={name: tiny, slab: 14, first: 2, last: 9, side: 32, area_cm2: [8, 40], lung_share: [0, 0.15]}",
    "input.registration={sampling: 0.2, iterations: 20, shrink: [2, 1], smoothing_mm: [2, 0]}",
]


def settings(**legacy: bool) -> Preparation:
    """Return the tiny preparation with some legacy switches on."""
    return Preparation(list(SPACING), PROFILE, REGISTRATION, LegacySwitches(**legacy))


def neck(
    seed: int,
    *,
    vessel_hu: float = 40.0,
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    shape: tuple[int, int, int] = SHAPE,
    spacing: tuple[float, float, float] = SPACING,
    noise_hu: float = 10.0,
) -> Volume:
    """Return an ellipse of 60 × 48 mm with a spine, two vessels of 5 mm radius and shoulders; moved by (z, y, x) mm.

    The body goes through the whole scan along z. Its grid stays where it is when the body is moved.
    """
    z, y, x = ((np.arange(n) - (n - 1) / 2) * s - d for n, s, d in zip(shape, spacing, shift_mm, strict=True))
    up, back, left = z[:, None, None], y[None, :, None], x[None, None, :]
    wide = 1 + 0.25 / (1 + np.exp((up + 15) / 4))
    image = np.full(shape, -1000.0)
    image[(left / (30 * wide)) ** 2 + (back / 24) ** 2 <= 1] = 40.0
    image[np.broadcast_to(np.hypot(left, back - 12) <= 6, shape)] = 500.0
    for side in (-1, 1):
        image[np.broadcast_to(np.hypot(left - 12 * side, back + 4) <= 5, shape)] = vessel_hu
    image += generator(seed, "neck").normal(0, noise_hu, shape)
    return Volume(np.rint(np.clip(image, -1024, 3000)).astype(np.int16), axial_affine(shape, spacing))


def chest(seed: int) -> Volume:
    """Return an ellipse as large with two lungs in it: another body part to the tiny profile."""
    scan = neck(seed)
    y, x = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE[1:], SPACING[1:], strict=True))
    voxels = scan.voxels.copy()
    for side in (-1, 1):
        lung = (((x[None] - 14 * side) / 8) ** 2 + (y[:, None] / 12) ** 2) <= 1
        voxels[:, lung] = -850
    return Volume(voxels, scan.affine)


def save(volume: Volume, path: Path) -> Path:
    """Write a scan as NIfTI, as scanners' converters do (axes L, P, S), and return its path."""
    scan = volume.oriented("LPS")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(np.asarray(scan.voxels), scan.affine).to_filename(path)
    return path
