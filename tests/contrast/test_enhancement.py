"""SYNTHETIC enhancement: time curves, vessel paths, organs, and a cohort whose native draws differ in HU alone."""

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fmct.contrast.drawing import enhance, find_anatomy
from fmct.contrast.enhancement import COLUMNS, phase_of_draw, write_enhanced_cohort
from fmct.contrast.organs import body_mask, find_organs, great_vessels, trunk_of
from fmct.contrast.time_curves import SECONDS, STRUCTURES, Injection, draw_injection
from fmct.contrast.vessel_paths import Tube, cheapest_path, spots
from fmct.data.pair_preparation import write_volume
from fmct.errors import DataError
from fmct.models.contrast import PHASES
from fmct.phantoms.body import axial_affine, body
from fmct.store.reader import Store
from fmct.volume import Volume

SPACING = (4.0, 2.5, 2.5)


def limb(seed: int = 0) -> Volume:
    """Return a thigh: fat, muscles, a bone, and a vessel that winds upwards in the fat between them."""
    shape = (24, 56, 56)
    random = np.random.default_rng(seed)
    y, x = ((np.arange(n) - (n - 1) / 2) * 2.5 for n in shape[1:])
    radius = np.hypot(y[:, None], x[None, :])
    hu = np.full(shape, -1000.0)
    hu[:, radius < 60] = -100
    hu[:, (radius < 52) & (np.abs(x[None, :]) > 14)] = 55
    hu[:, np.hypot(y[:, None] - 20, x[None, :] + 24) < 11] = 900
    for z in range(shape[0]):
        hu[z][np.hypot(y[:, None] - 25 + z, x[None, :]) < 4] = 42
    hu += random.normal(0, 8, shape)
    return Volume(np.rint(hu).astype(np.int16), axial_affine(shape, SPACING))


@pytest.fixture(scope="module")
def thigh():
    volume = limb()
    return volume, find_anatomy(volume)


def test_curves_begin_at_zero_stay_positive_and_wash_out() -> None:
    for name in STRUCTURES:
        rises = [Injection(float(t)).rise(name) for t in range(0, 601, 5)]
        assert rises[0] == 0
        assert min(rises) >= 0
        assert Injection(None).rise(name) == 0
        assert np.isclose(Injection(70.0, dose=2.0).rise(name), 2 * Injection(70.0).rise(name))
        if name != "renal_pelvis":
            assert rises[-1] < max(rises) / 2


def test_phases_look_as_they_are_named() -> None:
    arterial, portal, delayed = (Injection(t) for t in (35.0, 70.0, 180.0))
    assert arterial.rise("artery") > 2 * portal.rise("artery") > 2 * delayed.rise("artery") > 0
    assert portal.rise("liver") > 3 * arterial.rise("liver")
    assert portal.rise("portal_vein") > portal.rise("artery")
    assert arterial.rise("kidney_cortex") > 3 * arterial.rise("kidney_medulla")
    assert abs(delayed.rise("artery") - delayed.rise("vena_cava")) < 5
    assert delayed.rise("renal_pelvis") > 100 > portal.rise("renal_pelvis")
    assert Injection(22.0, delay=1.2).rise("artery") < Injection(22.0).rise("artery")


def test_injections_are_seeded_and_within_their_phase() -> None:
    for phase, (low, high) in SECONDS.items():
        drawn = [draw_injection(phase, 3, "a", n) for n in range(40)]
        assert all(low <= (i.seconds or 0) <= high for i in drawn)
        assert drawn[5] == draw_injection(phase, 3, "a", 5) != draw_injection(phase, 4, "a", 5)
    assert draw_injection("native", 0).seconds is None


def test_cheapest_path_is_the_cheapest_of_all() -> None:
    """Against every chain of a small volume, counted out."""
    costs = np.random.default_rng(0).random((4, 3, 4)).astype(np.float32)

    def chains(path: list[tuple[int, int]]):
        if len(path) == 4:
            yield path
            return
        y, x = path[-1]
        for b in range(max(0, y - 1), min(3, y + 2)):
            for a in range(max(0, x - 1), min(4, x + 2)):
                yield from chains([*path, (b, a)])

    def cost(path: list[tuple[int, int]]) -> float:
        bends = sum(0.15 * np.hypot(*np.subtract(a, b)) for a, b in pairwise(path))
        return bends + sum(float(costs[z][at]) for z, at in enumerate(path))

    best = min((c for y in range(3) for x in range(4) for c in chains([(y, x)])), key=cost)
    path, mean = cheapest_path(costs)
    assert [tuple(at) for at in path.tolist()] == best
    assert np.isclose(mean, cost(best) / 4)


def test_spots_are_round_things_and_not_edges_or_septa() -> None:
    plane = np.full((60, 60), -100.0)
    plane[:, 40:] = 50  # a muscle's edge
    plane[10, :30] = 50  # a septum
    y, x = np.ogrid[:60, :60]
    plane[np.hypot(y - 35, x - 15) < 3] = 45
    found = spots(np.repeat(plane[None], 3, axis=0), np.array([3.0, 1.5, 1.5]))[1]
    assert found[35, 15] > 0.8
    assert found[25:45, 38:42].max() < 0.35 * found[35, 15]
    assert found[10, 10:20].max() < 0.35 * found[35, 15]


def test_tube_occupancy_has_the_area_of_its_disc() -> None:
    for radius in (0.5, 2.0, 6.3):
        tube = Tube("artery", np.array([[20.3, 17.8]]), np.array([radius]))
        box, inside = tube.occupancy(0, (60, 50), np.array([0.8, 0.8]))
        assert inside.shape == (box[0].stop - box[0].start, box[1].stop - box[1].start)
        assert 0 <= inside.min() <= inside.max() <= 1
        assert np.isclose(inside.sum() * 0.64, np.pi * radius**2, rtol=0.12 if radius > 1 else 0.6)
    assert Tube("artery", np.array([[-50.0, 5.0]]), np.array([3.0])).occupancy(0, (9, 9), np.ones(2))[1].size == 0


def test_the_vessel_of_a_limb_is_found(thigh) -> None:
    anatomy = thigh[1]
    assert anatomy.limb
    arteries = [tube for tube in anatomy.tubes if tube.name == "limb_artery"]
    truth = np.stack([[(27.5 + (25 - z) / 2.5) * 2.5, 27.5 * 2.5] for z in range(24)])
    distance = min(float(np.median(np.hypot(*(t.centre_mm - truth).T))) for t in arteries)
    assert distance < 4
    assert any(tube.name == "limb_vein" for tube in anatomy.tubes)


def test_enhancement_changes_only_what_blood_reaches(thigh) -> None:
    volume, anatomy = thigh
    native = enhance(volume, anatomy, Injection(None), 0, "x").voxels.astype(float)
    arterial = enhance(volume, anatomy, Injection(48.0), 0, "x").voxels.astype(float)
    rise = arterial - native
    artery = next(tube for tube in anatomy.tubes if tube.name == "limb_artery")
    at = np.rint(artery.centre_mm / volume.spacing[1:]).astype(int)
    inside = np.array([rise[z, y, x] for z, (y, x) in enumerate(at)])[artery.radius_mm > 0]
    assert np.median(inside) > 150
    assert np.abs(rise[volume.voxels < -300]).max() == 0  # air
    assert np.median(np.abs(rise[volume.voxels > 600])) < 1  # bone
    assert np.array_equal(enhance(volume, anatomy, Injection(48.0), 0, "x").voxels, arterial)
    assert not np.array_equal(enhance(volume, anatomy, Injection(48.0), 1, "x").voxels, arterial)


def test_brighter_with_more_contrast(thigh) -> None:
    volume, anatomy = thigh
    means = [
        enhance(volume, anatomy, Injection(48.0, dose=dose), 0, "x").voxels[anatomy.body].mean()
        for dose in (0.0, 0.5, 1.0, 2.0)
    ]
    assert all(a < b for a, b in pairwise(means))


def test_organs_of_a_trunk() -> None:
    volume = body(1, (40, 60, 80), (8.0, 6.0, 6.0))
    hu = volume.voxels.astype(np.float32)
    trunk = trunk_of(hu, volume.spacing, body_mask(hu, volume.spacing))
    assert trunk is not None
    found = find_organs(trunk)
    ml = {name: mask.sum() * 0.064 for name, mask in found.items()}
    assert ml["liver"] > 600
    assert ml["myocardium"] + ml["artery"] + ml["pulmonary"] > 200
    assert {"kidney_cortex", "kidney_medulla"} <= set(found)
    left = trunk.sides[1]
    assert np.broadcast_to(left, trunk.hu.shape)[found["liver"]].mean() < 0
    assert sum(mask.astype(int) for mask in found.values()).max() == 1  # type: ignore[union-attr]
    aorta = next(tube for tube in great_vessels(trunk, volume.spacing, len(hu)) if tube.name == "artery")
    at = np.rint(aorta.centre_mm / volume.spacing[1:]).astype(int)[10:30]
    assert (hu[np.arange(10, 30), at[:, 0], at[:, 1]] > 0).mean() > 0.9
    assert trunk_of(limb().voxels.astype(np.float32), limb().spacing, limb().voxels > -400) is None


def test_no_body_is_refused() -> None:
    empty = Volume(np.full((12, 20, 20), -1000, dtype=np.int16), axial_affine((12, 20, 20), SPACING))
    with pytest.raises(DataError, match="30 ml"):
        find_anatomy(empty)


def test_cohort_is_whole_resumable_and_of_one_setting(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("A", "B", "STS_033"):
        write_volume(source / name / "ct.nii.gz", limb(ord(name[0])))
    cohort = write_enhanced_cohort(tmp_path / "out", source, seed=0, per_series=2, workers=1)
    with open(cohort.labels, newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert sorted({row["patient"] for row in rows}) == ["A", "B"]  # a patient of the evaluation set is left out
    assert [row["phase"] for row in rows] == ["native", "arterial"] * 2
    assert all((row["contrast"] == "0") == (row["phase"] == "native") == (row["seconds"] == "") for row in rows)
    with Store.open(cohort.store) as store:
        assert len(store.entries) == 4
        assert len({entry.patient for entry in store.entries}) == 2
    written = {path: path.stat().st_mtime_ns for path in cohort.scans.rglob("*.nii.gz")}
    again = sorted(written)[0]
    content = again.read_bytes()
    again.unlink()
    write_enhanced_cohort(tmp_path / "out", source, seed=0, per_series=2, make_store=False)
    assert {p for p, t in written.items() if p.stat().st_mtime_ns != t} == {again}
    from nibabel import load

    before = tmp_path / "before.nii.gz"
    before.write_bytes(content)
    assert np.array_equal(load(before).get_fdata(), load(again).get_fdata())
    with pytest.raises(DataError, match="holds a cohort"):
        write_enhanced_cohort(tmp_path / "out", source, seed=1, per_series=2)
    with pytest.raises(DataError, match="no CT that can be enhanced"):
        write_enhanced_cohort(tmp_path / "none", source, seed=0, pattern="mr.nii.gz")


def test_draws_alternate_native_and_the_phases_in_turn() -> None:
    assert [phase_of_draw(n) for n in range(7)] == [*(f for p in PHASES[1:] for f in ("native", p)), "native"]
