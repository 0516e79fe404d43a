"""How much brighter each structure is so many seconds after an injection, and which phase that time is called.

Rises in HU over the native value after about 0.5 g iodine per kg at 3 to 4 ml/s in an adult: rounded from textbook
time-enhancement curves (K. T. Bae, Radiology 2010;256:32-61), read at a few times and joined monotonically. Patients
differ by dose per weight (all rises scale) and by cardiac output (the first pass comes earlier or later).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.interpolate import PchipInterpolator

from fmct import randomness

SECONDS = {"arterial": (22.0, 45.0), "portal": (60.0, 95.0), "delayed": (140.0, 300.0)}
"""When a scan of that phase begins, seconds after the injection began; limbs are scanned `LIMB_DELAY_S` later."""
LIMB_DELAY_S = 10.0
BLOOD_HU = 42.0
_RISES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "pulmonary": ((0, 6, 12, 20, 32, 45, 70, 100, 180, 300, 600), (0, 0, 180, 330, 260, 170, 130, 105, 75, 52, 28)),
    "artery": ((0, 11, 16, 25, 35, 48, 70, 100, 180, 300, 600), (0, 0, 90, 270, 310, 190, 128, 102, 73, 51, 28)),
    "limb_artery": ((0, 20, 28, 38, 48, 62, 85, 120, 180, 300, 600), (0, 0, 90, 260, 290, 190, 122, 95, 72, 51, 28)),
    "portal_vein": ((0, 24, 34, 45, 60, 75, 100, 180, 300, 600), (0, 0, 18, 75, 135, 142, 118, 75, 52, 28)),
    "vena_cava": ((0, 30, 45, 60, 90, 120, 180, 300, 600), (0, 0, 25, 65, 98, 95, 73, 51, 28)),
    "limb_vein": ((0, 55, 75, 95, 120, 150, 180, 300, 600), (0, 0, 14, 35, 62, 74, 72, 51, 28)),
    "myocardium": ((0, 14, 25, 38, 60, 100, 180, 300, 600), (0, 0, 45, 75, 62, 52, 40, 28, 15)),
    "liver": ((0, 24, 35, 45, 60, 75, 100, 180, 300, 600), (0, 0, 11, 24, 47, 55, 50, 37, 27, 14)),
    "spleen": ((0, 14, 25, 35, 45, 70, 100, 180, 300, 600), (0, 0, 60, 92, 86, 76, 64, 45, 31, 17)),
    "kidney_cortex": ((0, 13, 25, 35, 50, 90, 180, 300, 600), (0, 0, 105, 165, 158, 150, 125, 95, 60)),
    "kidney_medulla": ((0, 18, 30, 50, 90, 120, 180, 300, 600), (0, 0, 18, 48, 125, 145, 132, 100, 62)),
    "renal_pelvis": ((0, 130, 160, 200, 260, 420, 600), (0, 0, 40, 220, 480, 700, 760)),
    "bowel_wall": ((0, 20, 35, 50, 75, 180, 300, 600), (0, 0, 38, 60, 52, 34, 24, 12)),
    "muscle": ((0, 24, 40, 70, 110, 180, 300, 600), (0, 0, 5, 13, 17, 15, 11, 6)),
}
STRUCTURES = tuple(_RISES)


@dataclass(frozen=True)
class Injection:
    """One patient's injection. dose: factor on every rise. delay: factor on the time that the first pass takes.

    seconds: from its beginning to the scan; None: nothing was injected, and nothing is brighter.
    """

    seconds: float | None
    dose: float = 1.0
    delay: float = 1.0

    def rise(self, structure: str) -> float:
        """Return by how many HU a structure of STRUCTURES is brighter than without contrast."""
        if self.seconds is None:
            return 0.0
        # A slow circulation stretches the first pass; minutes later only the distribution volume matters.
        stretch = 1 + (self.delay - 1) * float(np.exp(-self.seconds / 120))
        return self.dose * max(0.0, float(_curve(structure)(min(self.seconds / stretch, 600.0))))


def draw_injection(phase: str, seed: int, *key: int | str, limb: bool = False) -> Injection:
    """Return a seeded injection of a made-up patient: dose, circulation, and a time within a phase of PHASES."""
    random = randomness.generator(seed, "injection", *key)
    time, dose, delay = random.random(), float(random.uniform(0.75, 1.3)), float(random.uniform(0.85, 1.2))
    if phase == "native":
        return Injection(None, dose, delay)
    low, high = SECONDS[phase]
    return Injection(round(low + time * (high - low) + (LIMB_DELAY_S if limb else 0.0), 1), dose, delay)


@lru_cache(maxsize=len(STRUCTURES))
def _curve(structure: str) -> PchipInterpolator:
    """Return the monotone interpolation of a structure's rise; it does not overshoot between the points."""
    return PchipInterpolator(*_RISES[structure])
