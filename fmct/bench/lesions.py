"""The image side of lesion detection: radial symmetry of 256³ and a clean-up of its candidates, on one core."""

import numpy as np
from scipy import ndimage

from fmct import randomness
from fmct.bench.figures import Figure
from fmct.bench.timing import Cost, copy_rate, cost_of, median_ms, spread_ms
from fmct.bench.workbench import Workbench
from fmct.lesions.cleanup import CleanupRules, clean
from fmct.lesions.symmetry import symmetry_map

RADII_MM, SPACING = (2.0, 3.0), (1.0, 1.0, 1.0)
CANDIDATES = 300  # as many as the published detector leaves of a subject, at its worst


def bench_lesions(bench: Workbench) -> list[Figure]:
    """Return the seconds of a symmetry map (two radii, each voxel votes) and of a clean-up, each beside its floor."""
    sizes = bench.sizes
    bench.say(f"lesions: {sizes.lesion_side}³ voxels")
    image, labels, brain = phantom(sizes.lesion_side)
    costs = [
        cost_of(lambda: symmetry_map(image, SPACING, radii_mm=RADII_MM, sign="dark"))
        for _ in range(sizes.lesion_repeats)
    ]
    figures = [_symmetry_figure(bench, image, costs)]
    vessels = labels % 7 == 1
    for name, says, rules in (
        ("cleanup", "clean-up", CleanupRules(min_depth_mm=2.0)),
        ("cleanup/paper", "clean-up by the paper's rules", CleanupRules.paper()),
    ):
        runs = [
            cost_of(lambda rules=rules: clean(labels, brain, SPACING, rules, vessels=vessels))
            for _ in range(sizes.lesion_repeats)
        ]
        figures.append(_cleanup_figure(bench, name, says, labels, brain, runs))
    return figures


def phantom(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (noisy image with dark balls, label map of them, brain mask), each (side, side, side), always the same."""
    noise = randomness.generator(0, "bench", "lesions").standard_normal((side,) * 3, dtype=np.float32)
    image = 100 + 5 * noise
    z, y, x = (np.arange(side, dtype=np.float32) - (side - 1) / 2 for _ in range(3))
    brain = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 <= (0.42 * side) ** 2
    labels = np.zeros(image.shape, dtype=np.int32)
    places = randomness.generator(0, "bench", "candidates").integers(5, side - 5, (CANDIDATES, 3))
    ball = np.argwhere(ndimage.generate_binary_structure(3, 1)) - 1
    ball = np.unique((ball[:, None] + ball[None, :]).reshape(-1, 3), axis=0)
    for number, place in enumerate(places, start=1):
        inside = tuple((ball + place).T)
        labels[inside], image[inside] = number, 40
    return image, labels, brain


def _symmetry_figure(bench: Workbench, image: np.ndarray, costs: list[Cost]) -> Figure:
    """Return the map's seconds; its floor scatters each voxel's one vote, at a place that costs nothing to find."""
    place = np.arange(image.size)
    place += randomness.generator(0, "bench", "votes").integers(-3, 4, image.size)
    np.clip(place, 0, image.size - 1, out=place)
    weight = np.ones(image.size)
    floor = median_ms([cost_of(lambda: np.bincount(place, weight)) for _ in range(bench.sizes.lesion_repeats)])
    side = image.shape[0]
    return Figure(
        "lesions/symmetry",
        f"radial symmetry of {side}³, two radii",
        median_ms(costs) / 1e3,
        "s",
        len(RADII_MM) * floor / 1e3,
        "scattering one weighted vote of each voxel near its place, for each radius",
        details=spread_ms(costs) | {"voxels": image.size, "radii_mm": list(RADII_MM)},
        judged=bench.sizes.lesion_side == 256,
    )


def _cleanup_figure(
    bench: Workbench, name: str, says: str, labels: np.ndarray, brain: np.ndarray, costs: list[Cost]
) -> Figure:
    """Return the clean-up's seconds; its floor is reading the label map and the brain once, and writing the result."""
    moved = 2 * labels.nbytes + brain.nbytes
    return Figure(
        f"lesions/{name}",
        f"{says} of {CANDIDATES} candidates in {labels.shape[0]}³",
        median_ms(costs) / 1e3,
        "s",
        moved / copy_rate(labels.nbytes),
        "bytes of label map, brain and result at the copy rate",
        details=spread_ms(costs) | {"candidates": len(np.unique(labels)) - 1},
        judged=bench.sizes.lesion_side == 256,
    )
