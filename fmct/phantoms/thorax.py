"""A seeded thorax in formulas: drawn at any points, with and without contrast agent, and with its parts as masks.

Places and sizes are in half chest widths (x right, y front, z up, the origin in the middle of the mediastinum), so that
one anatomy comes in any size; only the vessels' radii are in millimetres.
"""

from dataclasses import dataclass

import numpy as np

from fmct import randomness
from fmct.phantoms.vessels import Tubes, clot, no_tubes, occupancy, polyline, tree
from fmct.volume import AIR_HU

FAT, MUSCLE, LIVER, LUNG, SPONGY, CORTICAL, TISSUE, DISC = -95, 55, 60, -850, 220, 700, 40, 80
BLOOD_HU, CLOT_HU, CLOT_IN_CONTRAST_HU = 40, 65, 50
_LEAVES = {"artery": 64, "vein": 40}  # of each lung
_DEEP = 0.68  # half depth of the chest, in half widths


@dataclass(frozen=True)
class Contrast:
    """How bright blood is, HU: arteries with the right heart; veins with the left heart and aorta; upper cava."""

    arteries: float = BLOOD_HU
    veins: float = BLOOD_HU
    cava: float = BLOOD_HU
    clot: float = CLOT_HU
    muscle: float = 0.0  # what the heart's wall and organs gain


@dataclass(frozen=True)
class Thorax:
    """One person. half: half the chest's width in mm; heart: its centre; lean: thickness of fat; the rest in mm."""

    half: float
    heart: np.ndarray
    fat: float
    rib_period: float
    rib_phase: float
    arteries: Tubes
    veins: Tubes
    clots: Tubes


def thorax(seed: int, width_mm: float, *, emboli: tuple[tuple[float, float], ...] = ()) -> Thorax:
    """Return the person of a seed, `width_mm` wide. emboli: (radius, length) in mm of each clot in the arteries."""
    random = randomness.generator(seed, "thorax")
    half = width_mm / 2
    heart = np.array([-0.15, 0.14, -0.26]) + random.normal(0, 0.015, 3)
    fat, period, phase = random.uniform(0.03, 0.08), random.uniform(0.19, 0.22), random.uniform(0, 1)
    plain = Thorax(half, heart, fat, period, phase, no_tubes(), no_tubes(), no_tubes())
    arteries = _pulmonary_arteries(plain, randomness.generator(seed, "arteries"))
    veins = _pulmonary_veins(plain, randomness.generator(seed, "veins"))
    clots = no_tubes()
    for number, (radius, length) in enumerate(emboli):
        clots += clot(arteries, radius, length, randomness.generator(seed, "embolus", number))
    return Thorax(half, heart, fat, period, phase, arteries, veins, clots)


def draw(
    person: Thorax, points: np.ndarray, affine: np.ndarray, soft_mm: float, contrast: Contrast, reach_mm: float = 0.0
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return (HU float32, {part: share of each voxel}) of a person at `points` (D, H, W, 3) RAS mm.

    points lie at most `reach_mm` from the grid of `affine`. Parts: lungs, heart, arteries, veins, clot; the lungs with
    the vessels in them, the clot inside the arteries.
    """
    x, y, z = (np.ascontiguousarray(points[..., axis]) / np.float32(person.half) for axis in range(3))
    soft = soft_mm / person.half

    def _tubes(what: Tubes) -> np.ndarray:
        return occupancy(what, points, affine, soft_mm, reach_mm)

    image = np.full(points.shape[:3], AIR_HU, dtype=np.float32)
    lungs = _draw_trunk(image, person, x, y, z, soft, contrast)
    _draw_bones(image, person, x, y, z, soft)
    heart, sac = _draw_heart(image, person, x, y, z, soft, contrast)
    lungs *= 1 - sac
    aorta, cava, airways = _great_vessels(person)
    arteries, veins = _tubes(person.arteries), _tubes(person.veins)
    mediastinal = (1 - lungs) * np.clip(1.4 - np.abs(x) / 0.3, 0, 1)
    for vessel in (_tubes(aorta.scaled(1.25)), _tubes(cava.scaled(1.35))):
        _blend(image, vessel * mediastinal * (1 - heart), FAT)
    _blend(image, _tubes(airways.scaled(1.35)), TISSUE)
    _blend(image, _tubes(airways), AIR_HU + 10)
    _blend(image, _tubes(aorta), contrast.veins)
    _blend(image, _tubes(cava), contrast.cava)
    _blend(image, veins, contrast.veins)
    _blend(image, arteries, contrast.arteries)
    clots = _tubes(person.clots)
    _blend(image, clots, contrast.clot)
    return image, {"lungs": lungs, "heart": heart, "arteries": arteries, "veins": veins, "clot": clots}


def _blend(image: np.ndarray, share: np.ndarray, value: float | np.ndarray) -> None:
    image += share * (value - image)


def _inside(distance: np.ndarray, soft: float) -> np.ndarray:
    """Return the share of a voxel inside a surface, from the signed distance to it (negative inside)."""
    return np.clip(0.5 - distance / soft, 0, 1)


def _ellipse(x: np.ndarray, y: np.ndarray, wide: float | np.ndarray, deep: float | np.ndarray) -> np.ndarray:
    """Return about the signed distance to a rounded rectangle-like ellipse, exponent 2.4."""
    radius = (np.abs(x / wide) ** 2.4 + np.abs(y / deep) ** 2.4) ** (1 / 2.4)
    return (radius - 1) * np.minimum(wide, deep)


def _ellipsoid(x: np.ndarray, y: np.ndarray, z: np.ndarray, centre: np.ndarray, half: tuple[float, ...]) -> np.ndarray:
    a, b, c = (x - centre[0]) / half[0], (y - centre[1]) / half[1], (z - centre[2]) / half[2]
    return (np.sqrt(a * a + b * b + c * c) - 1) * min(half)


def _lung_distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return about the signed distance to the lungs: in the ribs, above the diaphragm, beside the mediastinum."""
    taper = np.sqrt(np.clip(1 - (np.clip(z + 0.1, 0, None) / 1.0) ** 2.6, 0.02, 1))
    cavity = _ellipse(x, y + 0.02, 0.8 * taper, 0.52 * taper)
    dome = np.exp(-((np.abs(x) - 0.4) ** 2) / 0.09 - (y - 0.08) ** 2 / 0.14)
    floor = -0.78 + dome * np.where(x > 0, 0.38, 0.32)
    middle = 0.13 + 0.07 * np.exp(-((y + 0.36) ** 2) / 0.02) + 0.05 * np.exp(-((y - 0.1) ** 2) / 0.06)
    return np.maximum(np.maximum(cavity, floor - z), middle - np.abs(x))


def _draw_trunk(
    image: np.ndarray, person: Thorax, x: np.ndarray, y: np.ndarray, z: np.ndarray, soft: float, contrast: Contrast
) -> np.ndarray:
    """Draw skin, fat, muscle, mediastinum, abdomen and lungs; return the lungs' share."""
    outer = _ellipse(x, y, 1.0, _DEEP)
    _blend(image, _inside(outer, soft), MUSCLE)
    _blend(image, _inside(outer + 0.012, soft), FAT)
    _blend(image, _inside(outer + 0.012 + person.fat, soft), MUSCLE)
    cavity = _ellipse(x, y + 0.02, 0.82, 0.54)
    _blend(image, _inside(cavity, soft), TISSUE)
    below = _inside(cavity, soft) * _inside(z + 0.4 + 0.25 * (np.abs(x) - 0.4) ** 2, 0.1)
    liver = _ellipsoid(x, y, z, np.array([0.28, 0.04, -0.78]), (0.62, 0.48, 0.42))
    spleen = _ellipsoid(x, y, z, np.array([-0.52, -0.22, -0.78]), (0.24, 0.24, 0.3))
    _blend(image, below, FAT)
    _blend(image, below * _inside(liver, soft), LIVER + 0.6 * contrast.muscle)
    _blend(image, below * _inside(spleen, soft), LIVER - 10 + contrast.muscle)
    lungs = _inside(_lung_distance(x, y, z), soft)
    _blend(image, lungs, LUNG - 45 * y)  # a lying patient: the lung is denser behind
    return lungs


def _draw_bones(image: np.ndarray, person: Thorax, x: np.ndarray, y: np.ndarray, z: np.ndarray, soft: float) -> None:
    """Draw ribs that fall forward, sternum, shoulder blades, and a spine of vertebrae, discs and canal."""
    ring = _ellipse(x, y + 0.01, 0.865, 0.585)
    height = (z + 0.85 * y - 0.15 * np.abs(x)) / person.rib_period + person.rib_phase
    band = np.abs(height - np.rint(height)) * person.rib_period
    rib = np.hypot(np.clip(np.abs(ring) - 0.008, 0, None), np.clip(band - 0.02, 0, None)) - 0.02
    chest = _inside(z - 0.8, 0.05)
    _blend(image, _inside(rib, soft) * chest, CORTICAL)
    _blend(image, _inside(rib + 0.022, soft) * chest, SPONGY + 60)
    blade = np.maximum(np.abs(_ellipse(x, y, 0.93, 0.63)) - 0.018, np.hypot(np.abs(x) - 0.62, z - 0.42) - 0.25)
    _blend(image, _inside(np.maximum(blade, y + 0.2), soft), CORTICAL - 200)
    sternum = np.maximum(np.hypot(x / 1.8, y - 0.575) - 0.04, np.abs(z - 0.02) - 0.5)
    _blend(image, _inside(sternum, soft), SPONGY + 120)
    back = y + 0.36
    column = np.hypot(x / 1.2, back) - 0.12
    place = np.abs((z / person.rib_period - person.rib_phase) % 1 - 0.5) * person.rib_period
    disc = _inside(0.38 * person.rib_period - place, soft)
    arch = np.hypot(x / 1.2, back + 0.165) - 0.085
    process = np.maximum(np.abs(x) - 0.022, np.abs(back + 0.255) - 0.05)
    _blend(image, _inside(arch, soft), CORTICAL - 150)
    _blend(image, _inside(process, soft) * (1 - disc), CORTICAL - 250)
    _blend(image, _inside(np.hypot(x, back + 0.165) - 0.055, soft), 25)  # the canal
    _blend(image, _inside(column, soft), DISC)
    _blend(image, _inside(column, soft) * (1 - disc), CORTICAL - 150)
    _blend(image, _inside(column + 0.025, soft) * (1 - disc), SPONGY)


def _draw_heart(
    image: np.ndarray, person: Thorax, x: np.ndarray, y: np.ndarray, z: np.ndarray, soft: float, contrast: Contrast
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the heart in its fat: wall, right and left blood pool, left atrium. Return its share, and with the fat."""
    centre = person.heart
    # The long axis points left, forward and down.
    u, v = (x - centre[0]) * 0.8 - (y - centre[1]) * 0.6, (x - centre[0]) * 0.6 + (y - centre[1]) * 0.8
    w = z - centre[2]
    origin = np.zeros(3)
    outside = _ellipsoid(u, v, w, origin, (0.40, 0.27, 0.29))
    right = np.minimum(
        _ellipsoid(u - 0.06, v - 0.12, w, origin, (0.28, 0.10, 0.20)),
        _ellipsoid(u - 0.26, v - 0.02, w, origin, (0.12, 0.14, 0.17)),
    )
    left = _ellipsoid(u + 0.08, v + 0.08, w, origin, (0.24, 0.095, 0.15))
    atrium = _ellipsoid(x, y, z, np.array([-0.02, -0.13, -0.1]), (0.19, 0.1, 0.12))
    sac = _inside(np.minimum(outside, atrium) - 0.035, soft)
    _blend(image, sac, FAT)
    _blend(image, _inside(outside, soft), TISSUE + 8 + contrast.muscle)
    _blend(image, _inside(left, soft), contrast.veins)
    _blend(image, _inside(atrium, soft), contrast.veins)
    _blend(image, _inside(right, soft), contrast.arteries)
    return _inside(np.minimum(outside, atrium), soft), sac


def _great_vessels(person: Thorax) -> tuple[Tubes, Tubes, Tubes]:
    """Return aorta, upper vena cava and airways."""
    h = person.half
    aorta = [(0.0, 0.08, -0.12), (0.06, 0.14, 0.1), (0.04, 0.1, 0.28), (-0.04, -0.02, 0.36), (-0.13, -0.14, 0.3)]
    aorta += [(-0.18, -0.21, 0.12), (-0.18, -0.22, -0.3), (-0.12, -0.2, -1.2)]
    cava = [(0.17, 0.06, 0.8), (0.18, 0.07, 0.3), (0.17, 0.1, -0.15)]
    trachea = [(0.02, -0.02, 1.1), (0.01, -0.07, 0.5), (0.0, -0.1, 0.24)]
    airways = polyline(np.array(trachea) * h, np.full(3, 0.055 * h))
    for side in (1, -1):
        bronchus = [
            (0.0, -0.1, 0.24),
            (side * 0.15, -0.12, 0.13),
            (side * 0.3, -0.13, 0.04),
            (side * 0.42, -0.16, -0.1),
        ]
        airways += polyline(np.array(bronchus) * h, np.array([0.04, 0.038, 0.03, 0.018]) * h)
    return (
        polyline(np.array(aorta) * h, np.full(len(aorta), 0.085 * h)),
        polyline(np.array(cava) * h, np.full(3, 0.06 * h)),
        airways,
    )


def _pulmonary_arteries(person: Thorax, random: np.random.Generator) -> Tubes:
    """Return the trunk out of the right ventricle, its two branches, and a tree in each lung."""
    h = person.half
    thick = 0.075 * h
    fork = np.array([-0.08, 0.04, 0.14]) * h
    found = polyline(np.array([[-0.1, 0.26, -0.12], [-0.11, 0.19, 0.04], fork / h]) * h, np.full(3, 1.1 * thick))
    for side, hilum in ((1, (0.3, -0.02, 0.06)), (-1, (-0.3, -0.04, 0.1))):
        leaves = _points_in_lung(side, _LEAVES["artery"], random) * h
        root = np.array(hilum) * h
        between = (fork + root) / 2 + np.array([0, 0.01, 0.01]) * h
        trunk = polyline(np.array([fork, between, root]), np.array([thick, 0.95 * thick, 0.85 * thick]))
        found += _joined(trunk, tree(root, leaves, random, root_radius=0.8 * thick))
    return found


def _pulmonary_veins(person: Thorax, random: np.random.Generator) -> Tubes:
    """Return an upper and a lower vein on each side, from the left atrium into the lung."""
    h = person.half
    found = no_tubes()
    for side in (1, -1):
        leaves = _points_in_lung(side, _LEAVES["vein"], random)
        upper = leaves[:, 2] > np.median(leaves[:, 2])
        for part, height in ((leaves[upper], 0.0), (leaves[~upper], -0.2)):
            root = np.array([side * 0.29, -0.1 + 0.1 * (height > -0.1), height]) * h
            origin = np.array([side * 0.12, -0.13, -0.1 + 0.3 * (height + 0.1)]) * h
            thick = 0.05 * h
            stem = polyline(np.array([origin, root]), np.array([thick, 0.9 * thick]))
            found += _joined(stem, tree(root, part * h, random, root_radius=0.9 * thick))
    return found


def _joined(stem: Tubes, branches: Tubes) -> Tubes:
    """Return both, the roots of `branches` continuing the last tube of `stem`."""
    parent = np.where(branches.parent < 0, -1, branches.parent + len(stem))
    parent[branches.parent < 0] = len(stem) - 1
    together = stem + branches
    return Tubes(together.start, together.end, together.radius, np.concatenate([stem.parent, parent]))


def _points_in_lung(side: int, count: int, random: np.random.Generator) -> np.ndarray:
    """Return `count` points (count, 3) spread over one lung, in half widths: each the farthest of a few candidates."""
    pool = random.uniform([0.18, -0.5, -0.75], [0.8, 0.5, 0.85], (60 * count, 3)) * [side, 1, 1]
    pool = pool[_lung_distance(*pool.T) < -0.05]
    chosen = [pool[0]]
    for start in range(1, count):
        candidates = pool[start * 8 : start * 8 + 8]
        nearest = np.linalg.norm(candidates[:, None] - np.array(chosen)[None], axis=-1).min(axis=1)
        chosen.append(candidates[int(nearest.argmax())])
    return np.array(chosen)
