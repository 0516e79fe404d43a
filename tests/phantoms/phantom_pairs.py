"""Small SYNTHETIC pairs, drawn once for all tests that only look at them."""

from functools import cache

from fmct.phantoms.embolism import PhantomPair, phantom_pair

SHAPE, SPACING = (32, 40, 40), (5.0, 5.0, 5.0)


@cache
def small_pair(
    seed: int = 5, *, misregistration_mm: float = 4.0, noise_hu: float = 25.0, enhancement_hu: float = 260.0
) -> PhantomPair:
    """Return a pair of 32 × 40 × 40 voxels at 5 mm; do not write into it."""
    return phantom_pair(
        seed,
        shape=SHAPE,
        spacing_mm=SPACING,
        misregistration_mm=misregistration_mm,
        noise_hu=noise_hu,
        enhancement_hu=enhancement_hu,
    )
