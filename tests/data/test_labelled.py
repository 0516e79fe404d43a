"""Labelled windows: what they show, what is known of them, and that nothing but (seed, draw) decides it.

G3, G5, G9 and T3, T4 of the acceptance checks.
"""

import logging
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from fmct.data.cohort import Cohort, CohortConfig, read_cohort
from fmct.data.label_sampler import HARD_NEGATIVE, POSITIVE, UNIFORM
from fmct.data.labelled import LabelledBatch, build_labelled_loader, series_batches, windows_of
from fmct.data.mask_bank import MASK_SCALE
from fmct.data.view_config import Chance
from fmct.data.window_config import IntensityConfig, SharesConfig, SpatialConfig, WindowsConfig, window_grid
from fmct.data.window_place import CropPlan
from fmct.data.window_render import box_axis, intensities, lesion_share, validity
from fmct.errors import ConfigError, DataError
from fmct.preprocess import InputSpec, Preprocessing
from fmct.store.ingest import IngestConfig, ingest
from fmct.windows import Window
from tests.data.labelled_store import (
    LESION_HU,
    LabelledStore,
    changed,
    lesion,
    make_labelled_store,
    preprocessing,
    scan,
    table,
    write,
)
from tests.data.labelled_store import (
    POSITIVE as POSITIVE_PATIENTS,
)

TURNED = SpatialConfig(
    flip=[0.5, 0.5, 0.5], rotation_degrees=[25.0, 20.0, 15.0], rotation_probability=1.0, scale=[0.8, 1.25]
)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> LabelledStore:
    return make_labelled_store(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def cohort(labelled: LabelledStore) -> Cohort:
    return read_cohort(labelled.config)


@pytest.fixture(scope="module")
def paired_config(tmp_path_factory: pytest.TempPathFactory) -> CohortConfig:
    """Two patients; the first has a paired scan that is the scan plus 100 HU, the second has none."""
    root = tmp_path_factory.mktemp("paired")
    for number, patient in enumerate(("P1", "P2")):
        voxels = scan(number)
        voxels[lesion(number) > 0] = LESION_HU
        write(root / "scans" / patient / "ct.nii.gz", voxels)
        write(root / "masks" / patient / "ct_pe.nii.gz", lesion(number))
        if patient == "P1":
            write(root / "scans" / patient / "angio.nii.gz", voxels + np.int16(100))
    ingest([root / "scans"], root / "store", config=IngestConfig(workers=1, patient_regex="(P[0-9])/"))
    rows = [("patient", "nct", "ctpa", "minutes"), ("P1", "P1/ct.nii.gz", "P1/angio.nii.gz", 30)]
    return changed(
        LabelledStore(root, root / "store", root / "masks", root / "none", root / "splits.csv").config,
        labels="",
        pairs=table(root / "pairs.csv", rows),
        splits=table(root / "splits.csv", [("patient", "split"), ("P1", "train"), ("P2", "train")]),
    )


@pytest.fixture(scope="module")
def paired(paired_config: CohortConfig) -> Cohort:
    return read_cohort(paired_config)


def take(cohort: Cohort, config: WindowsConfig, count: int, *, split: str = "train", **options: int) -> LabelledBatch:
    loader = build_labelled_loader(cohort, split, preprocessing(), config, batch_size=count, **{"seed": 5, **options})
    return next(iter(loader))


def same(a: LabelledBatch, b: LabelledBatch, first: slice, second: slice) -> bool:
    """Return whether rows of two batches are equal to the bit."""
    for field in fields(LabelledBatch):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if left is None or right is None:
            assert left is None
            assert right is None
        elif isinstance(left, list):
            assert left[first] == right[second], field.name
        else:
            assert torch.equal(torch.nan_to_num(left[first], 7.0), torch.nan_to_num(right[second], 7.0)), field.name
    return True


def test_kinds_are_dealt_in_their_shares_and_show_what_they_say(cohort: Cohort) -> None:
    batch = take(cohort, WindowsConfig(), 30)
    assert [batch.kinds.count(kind) for kind in (POSITIVE, HARD_NEGATIVE, UNIFORM)] == [10, 10, 10]
    held = (batch.mask * 12).sum((1, 2, 3))
    for kind, volume, label in zip(batch.kinds, held.tolist(), batch.labels[:, 0].tolist(), strict=True):
        if kind == POSITIVE:
            assert volume > 0
        if kind == HARD_NEGATIVE:
            assert volume == 0
            assert label == 0.0
    assert batch.has_mask.all()
    assert batch.paired is None
    assert batch.bags.max() == 3


def test_a_mask_covers_what_is_bright_in_the_window(cohort: Cohort) -> None:
    batch = take(cohort, WindowsConfig(shares=SharesConfig(1.0, 0.0, 0.0)), 6)
    for volume, mask in zip(batch.volumes[:, 0], batch.mask, strict=True):
        assert volume[mask > 0.999].min() == pytest.approx(LESION_HU / 1000, abs=1e-3)
        assert volume[mask == 0].max() < LESION_HU / 1000 - 0.001


@pytest.mark.parametrize("spatial", [SpatialConfig(flip=[0.5, 0.5, 0.5], scale=[0.8, 1.25]), TURNED])
def test_one_spatial_transform_moves_scan_pair_and_mask(paired: Cohort, spatial: SpatialConfig) -> None:
    """G9: after flips, turns and scaling the paired scan is still 100 HU above, and the mask still on the lesion."""
    config = WindowsConfig(shares=SharesConfig(1.0, 0.0, 0.0), spatial=spatial)
    batch = take(paired, config, 8)
    assert batch.paired is not None
    assert 0 < batch.has_pair.sum() < 8
    for row in torch.nonzero(batch.has_pair).flatten().tolist():
        inside = batch.valid[row] > 0
        assert torch.allclose((batch.paired[row, 0] - batch.volumes[row, 0])[inside], torch.tensor(0.1), atol=1e-5)
        # Interpolation at a lesion's rim takes a tenth from outside, where the window is finer than the scan.
        assert batch.volumes[row, 0][batch.mask[row] > 0.999].min() > 0.26
    # The scale is in the spacing that the model is told.
    assert batch.spacing.unique(dim=0).shape[0] == 8
    assert torch.allclose(batch.spacing[:, 0] / batch.spacing[:, 1], torch.tensor(1.5))


def test_a_missing_pair_is_a_flag(paired: Cohort) -> None:
    """T3: has_pair says so; no scan is made of it, and it has no weight."""
    batch = take(paired, WindowsConfig(), 8)
    assert batch.paired is not None
    assert set(batch.has_pair.tolist()) == {True, False}
    assert torch.equal(batch.has_pair, batch.pair_weight > 0)
    assert not batch.paired[~batch.has_pair].any()
    assert batch.paired[batch.has_pair].abs().sum() > 0


def test_what_is_told_of_a_pair_is_told_once(
    paired_config: CohortConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [("patient", "nct", "ctpa", "minutes"), ("P1", "P1/ct.nii.gz", "P1/angio.nii.gz", 300)]
    with caplog.at_level(logging.INFO):
        found = read_cohort(changed(paired_config, pairs=table(tmp_path / "pairs.csv", rows)))
    assert "300 minutes" in found.notes[0]
    assert [record.message for record in caplog.records] == list(found.notes)


def test_intensities_are_drawn_apart(paired: Cohort) -> None:
    shifts = IntensityConfig(shift=Chance(1.0, [-50.0, 50.0]))
    plain = take(paired, WindowsConfig(), 8)
    batch = take(paired, WindowsConfig(intensity=shifts, paired_intensity=shifts), 8)
    assert torch.equal(batch.mask, plain.mask)
    rows = torch.nonzero(batch.has_pair).flatten().tolist()
    moved = []
    for now, before in ((batch.volumes, plain.volumes), (batch.paired, plain.paired)):
        assert now is not None
        assert before is not None
        body = before[:, 0] > -0.5
        moved.append([float((now[row, 0] - before[row, 0])[body[row]].mean()) * 1000 for row in rows])
    assert all(0.01 < abs(shift) <= 50 for shifts in moved for shift in shifts)
    assert np.std(moved[0]) > 1
    assert min(abs(a - b) for a, b in zip(*moved, strict=True)) > 0.01


def test_draws_do_not_depend_on_batches_ranks_or_where_a_run_was_broken(cohort: Cohort) -> None:
    noisy = IntensityConfig(noise=Chance(1.0, [5.0, 20.0]), blur=Chance(0.5, [0.3, 0.8]), gamma=Chance(1.0, [0.8, 1.2]))
    config = WindowsConfig(spatial=TURNED, intensity=noisy)
    whole = take(cohort, config, 8)
    assert whole.draws.tolist() == list(range(8))
    assert same(take(cohort, config, 4, start_draw=4), whole, slice(0, 4), slice(4, 8))
    assert same(take(cohort, config, 2, rank=1, world_size=2, start_draw=2), whole, slice(0, 2), slice(4, 6))
    assert not torch.equal(take(cohort, config, 8, seed=6).volumes, whole.volumes)


def test_workers_change_nothing(cohort: Cohort) -> None:
    loaders = [
        build_labelled_loader(
            cohort, "train", preprocessing(), WindowsConfig(), seed=1, batch_size=3, start_draw=3, workers=workers
        )
        for workers in (0, 1)
    ]
    for (a, b), _ in zip(zip(*loaders, strict=True), range(2), strict=False):
        assert same(a, b, slice(None), slice(None))


def test_labels_of_windows_follow_the_mask(cohort: Cohort) -> None:
    """T4: 1 from v_min on, 0 when free of lesion, unknown in between, against the overlap of boxes."""
    config = WindowsConfig(v_min_mm3=300.0, middle=1.0)
    loader = build_labelled_loader(cohort, "train", preprocessing(), config, seed=2, batch_size=40)
    batch = next(iter(loader))
    windows = loader._reader.read(range(40)).windows
    expected = []
    for window in windows:
        sample = loader._reader.samples[window.sample]
        volume = 0.0
        if sample.mask is not None:
            first = cohort.masks.mask(sample.entry, sample.mask).start
            side = np.abs(window.place.steps) @ np.asarray(window.place.size)
            low = np.maximum(window.place.centre - side / 2, np.asarray(first) - 0.5)
            high = np.minimum(window.place.centre + side / 2, np.asarray(first) + 3.5)
            volume = float(np.maximum(high - low, 0).prod()) * 12
        expected.append(1.0 if volume >= 300 else math.nan if volume > 1 else 0.0)
    found = batch.labels[:, 0].tolist()
    assert {str(value) for value in expected} == {"1.0", "0.0", "nan"}
    assert [str(value) for value in found] == [str(value) for value in expected]


def test_a_positive_patient_without_a_mask_labels_no_window(labelled: LabelledStore) -> None:
    """T4: neither positive nor negative, whatever the window shows; a negative's windows are negative."""
    without = read_cohort(changed(labelled.config, masks=""))
    batch = take(without, WindowsConfig(), 12)
    positive = batch.patient_labels[:, 0] == 1
    assert positive.any()
    assert batch.labels[positive].isnan().all()
    assert (batch.labels[~positive] == 0).all()
    assert not batch.has_mask.any()
    assert set(batch.kinds) == {UNIFORM}
    everywhere = take(without, WindowsConfig(label_scope="global"), 12)
    assert torch.equal(everywhere.labels, everywhere.patient_labels)
    whole = take(without, WindowsConfig(size=[24, 28, 32]), 12)
    assert torch.equal(whole.labels, whole.patient_labels)


def test_balanced_draws_show_both_classes_alike(labelled: LabelledStore, tmp_path: Path) -> None:
    labels = table(tmp_path / "l.csv", [("patient", "pe"), ("P1", 1), ("P2", 0), ("P3", 0), ("P4", 0)])
    few = read_cohort(changed(labelled.config, masks="", labels=labels))
    batch = take(few, WindowsConfig(balance="pe"), 20)
    assert batch.patient_labels.sum() == 10
    with pytest.raises(ConfigError, match="balance=lung"):
        take(few, WindowsConfig(balance="lung"), 4)


def test_a_share_without_series_is_refused(labelled: LabelledStore, tmp_path: Path) -> None:
    cohort = read_cohort(labelled.config)
    negatives = cohort.keep([labelled.entry("P3").patient, labelled.entry("P4").patient], split="train")
    with pytest.raises(DataError, match=r"windows.shares.positive=0.333333: none of the 2 series"):
        take(negatives, WindowsConfig(), 4)
    with pytest.raises(DataError, match=r"shares.unlabelled=1"):
        take(cohort, WindowsConfig(shares=SharesConfig(0, 0, 0, 1.0)), 4)


def test_outside_the_scan_is_air_and_not_valid(cohort: Cohort) -> None:
    """G3: a window larger than the scan."""
    batch = take(cohort, WindowsConfig(size=[32, 28, 32]), 4)
    assert (batch.valid.sum(1) == 24).all()
    assert (batch.volumes[:, 0][batch.valid == 0] == -1).all()
    assert len({tuple(row) for row in batch.valid[:, :, 0, 0].tolist()}) > 1


@pytest.mark.parametrize("orientation", ["SPL", "RAS", "PSL"])
def test_windows_are_what_preprocessing_makes_of_a_scan(cohort: Cohort, orientation: str) -> None:
    """G5: a window of the whole scan against Preprocessing, in the encoder's own orientation."""
    spec = InputSpec(mode="resize", size_voxels=(12, 14, 16), spacing_mm=None)
    encoder = Preprocessing((Window(-1000.0, 1000.0),), spec, orientation=orientation)
    batch = next(iter(windows_of(cohort, "test", encoder, WindowsConfig(), count=1, seed=0, batch_size=2)))
    for number, sample in enumerate(cohort.of("test")):
        tiles = encoder.tiles(cohort.store.volume(sample.entry))
        assert torch.allclose(batch.volumes[number], tiles.tensor[0], atol=1e-5)
        assert torch.allclose(batch.spacing[number], tiles.spacing_mm[0].float())
    assert (batch.patient_labels.flatten().tolist()) == [float(s.labels[0]) for s in cohort.of("test")]
    assert len(POSITIVE_PATIENTS) == 3


def test_windows_for_validation_are_finite_inside_and_repeatable(cohort: Cohort) -> None:
    config = WindowsConfig(body_fraction=0.0, spatial=TURNED)
    batches = [list(windows_of(cohort, "test", preprocessing(), config, count=5, seed=9, batch_size=4)) for _ in (0, 1)]
    assert [len(batch) for batch in batches[0]] == [4, 4, 2]
    entries = [entry for batch in batches[0] for entry in batch.entries]
    assert entries == [sample.entry.id for sample in cohort.of("test") for _ in range(5)]
    for a, b in zip(*batches, strict=True):
        assert same(a, b, slice(None), slice(None))
        assert (a.valid == 1).all()
        assert torch.equal(a.spacing, torch.tensor([[3.0, 2.0, 2.0]]).expand(len(a), 3))


def test_turned_windows_against_scipy() -> None:
    random = np.random.default_rng(0)
    crop = random.integers(-1000, 1000, (9, 10, 11)).astype(np.int16)
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0] * 1.2
    matrix = np.concatenate([turn, (np.array([4.0, 4.5, 5.0]) - turn @ [3.5, 3.0, 2.5])[:, None]], axis=1)
    plan = CropPlan(0, (0, 0, 0), (9, 10, 11), matrix, (-0.5,) * 3, (8.5, 9.5, 10.5), -1000.0, 1.0)
    assert plan.order is None
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (8, 7, 6)), indexing="ij"))
    where = np.einsum("ij,jzyx->izyx", matrix[:, :3], index) + matrix[:, 3, None, None, None]
    expected = ndimage.map_coordinates(crop.astype(np.float64), where, order=1, mode="nearest")
    high = np.array([8.5, 9.5, 10.5])[:, None, None, None]
    inside = ((where >= -0.5) & (where <= high)).all(axis=0)
    assert 0.5 < inside.mean() < 1
    size = (8, 7, 6)
    assert np.allclose(intensities(torch.from_numpy(crop), plan, size), np.where(inside, expected, -1000), atol=0.01)
    assert np.array_equal(validity(plan, size, "cpu").numpy(), inside)
    share = lesion_share(torch.from_numpy(np.abs(crop) * np.int16(30)), plan, size)
    kept = ndimage.map_coordinates(np.abs(crop) * 30.0 / MASK_SCALE, where, order=1, mode="nearest")
    assert np.allclose(share, np.where(inside, kept, 0), atol=1e-4)


def test_box_means_against_fine_sampling() -> None:
    random = np.random.default_rng(1)
    values = random.random(12)
    for width, first in ((2.7, 0.4), (0.6, -0.3), (1.0, 0.0)):
        positions = first + width * np.arange(6)
        fine = positions[:, None] + width * ((np.arange(4000) + 0.5) / 4000 - 0.5)
        nearest = np.rint(fine).astype(int)
        held = np.where((nearest >= 0) & (nearest < 12), values[np.clip(nearest, 0, 11)], 0)
        assert np.allclose(box_axis(positions, width, 12).matrix @ values, held.mean(axis=1), atol=1e-3)


def test_a_lesion_of_one_voxel_keeps_its_volume_in_coarse_windows(labelled: LabelledStore, tmp_path: Path) -> None:
    mask = np.zeros((24, 28, 32), np.uint8)
    mask[11, 13, 15] = 1
    write(tmp_path / "P1" / "ct_pe.nii.gz", mask)
    tiny = read_cohort(changed(labelled.config, masks=tmp_path))
    config = WindowsConfig(size=[4, 4, 4], spacing_mm=[9.0, 9.0, 9.0], other_spacing=True, v_min_mm3=11.0)
    batch = take(tiny, replace(config, shares=SharesConfig(1.0, 0.0, 0.0)), 6)
    assert torch.allclose((batch.mask * 729).sum((1, 2, 3)), torch.tensor(12.0), rtol=0.02)
    assert (batch.labels == 1).all()


def test_series_come_as_all_their_tiles_in_order(cohort: Cohort) -> None:
    encoder = preprocessing()
    found = list(series_batches(cohort, "test", encoder, batch_size=5))
    assert all(len(tiles.tensor) <= 5 for _, tiles in found)
    for sample in cohort.of("test"):
        parts = torch.cat([tiles.tensor for owner, tiles in found if owner is sample])
        assert torch.equal(parts, encoder(cohort.store.volume(sample.entry)))


def test_windows_take_the_encoders_grid(cohort: Cohort) -> None:
    with pytest.raises(ConfigError, match=r"trained at \[3.0, 2.0, 2.0\] mm"):
        take(cohort, WindowsConfig(spacing_mm=[1.0, 1.0, 1.0]), 2)
    grid = window_grid(WindowsConfig(size=[4, 5, 6]), preprocessing())
    assert (grid.size, grid.spacing_mm) == ((4, 5, 6), (3.0, 2.0, 2.0))
    for config in (
        WindowsConfig(label_scope="patient"),
        WindowsConfig(shares=SharesConfig(0.0, 0.0, 0.0)),
        WindowsConfig(middle=2.0),
        WindowsConfig(spatial=SpatialConfig(scale=[0.0, 1.0])),
        WindowsConfig(intensity=IntensityConfig(noise=Chance(2.0, [0.0, 1.0]))),
    ):
        with pytest.raises(ConfigError):
            take(cohort, config, 2)
    encoder = Preprocessing((Window(0.0, 10.0),), preprocessing().input, modality="PT")
    with pytest.raises(DataError, match="takes PT"):
        build_labelled_loader(cohort, "train", encoder, WindowsConfig(), seed=0, batch_size=2)
