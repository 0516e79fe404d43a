"""Scans as LUNA16 ships them, in tiny: an MHD with a blob where the tables say that a nodule is."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

SHAPE, SPACING, ORIGIN = (12, 40, 44), (2.5, 0.7, 0.8), (-60.0, 35.0, -200.0)  # zyx, zyx mm, LPS mm
NODULE, DIAMETER = (-48.0, 49.0, -188.0), 8.0  # LPS
TINY = (-30.2, 45.2, -181.0)
DOUBTFUL = (-40.0, 52.5, -186.0)


def write_scan(path: Path, seed: int, *, turned: bool = False, nodule: bool = True) -> None:
    """Write an MHD as LUNA16 ships it, a blob at NODULE in its world; turned: its x and y run the other way."""
    world = _world(turned)
    noise = np.random.default_rng(seed).normal(0, 20, SHAPE)
    near = (np.linalg.norm(world - NODULE, axis=-1) <= DIAMETER / 2) & nodule
    body = np.abs(world[..., 0] + 43) < 16
    _write(path, np.where(near, 60, np.where(body, 0, -850) + noise).astype(np.int16), turned)


def write_lungs(path: Path, *, turned: bool = False) -> None:
    """Write a mask as seg-lungs-LUNA16 has them: 3 and 4 on the two sides, 5 in between, nothing at the edges."""
    x = _world(turned)[..., 0] + 43
    values = np.where(np.abs(x) < 1, 5, np.where(x < 0, 3, 4))
    values[:1], values[-1:], values[:, :2], values[:, -2:] = 0, 0, 0, 0
    _write(path, values.astype(np.uint8), turned)


def _direction(turned: bool) -> np.ndarray:
    return np.diag([-1.0, -1.0, 1.0] if turned else [1.0, 1.0, 1.0])


def _origin(turned: bool) -> np.ndarray:
    return np.array(ORIGIN) + (1 - np.diag(_direction(turned))) / 2 * [0.8 * 43, 0.7 * 39, 0]


def _world(turned: bool) -> np.ndarray:
    z, y, x = np.indices(SHAPE)
    return np.stack([x * 0.8, y * 0.7, z * 2.5], axis=-1) @ _direction(turned) + _origin(turned)


def _write(path: Path, values: np.ndarray, turned: bool) -> None:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin(_origin(turned).tolist())
    image.SetDirection(_direction(turned).ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
