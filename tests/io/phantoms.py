"""Small CT-like arrays for tests of reading."""

import numpy as np


def body(shape: tuple[int, int, int] = (12, 24, 26), *, seed: int = 0, sigma: float = 12.0) -> np.ndarray:
    """Return int16 HU (D, H, W): an ellipse of noisy fat and tissue with a bone and a lung, in noisy air."""
    _, h, w = shape
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    plane = np.full((h, w), -1000.0)
    plane[x**2 + y**2 < 0.8] = -100.0
    plane[x**2 + y**2 < 0.5] = 40.0
    plane[(x - 0.4) ** 2 + y**2 < 0.05] = 700.0
    plane[(x + 0.4) ** 2 + y**2 < 0.08] = -850.0
    noise = np.random.default_rng(seed).normal(0.0, sigma, shape)
    return np.clip(np.rint(plane + noise), -1024, 3071).astype(np.int16)
