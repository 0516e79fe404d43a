"""Slabs: what is known under sparse annotation, where they lie, the budget, and draws that depend on nothing else."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from fmct.data.cohort import Cohort, CohortConfig, read_cohort
from fmct.data.labelled import LabelledBatch
from fmct.data.series import scan_of_entry
from fmct.data.slab_config import BudgetConfig, SlabsConfig, check_slabs
from fmct.data.slabs import SlabPlaces, build_slab_loader, check_input, slab_pools, within_budget
from fmct.data.window_config import SpatialConfig
from fmct.errors import ConfigError, DataError
from fmct.preprocess import InputSpec, Preprocessing
from fmct.tiling import cut_tile, plan_slabs
from fmct.windows import Window
from tests.data.angiograms import Angiograms, angiograms

SLABS = SlabsConfig(size=[5, 48, 48], spacing_mm=[5.0, 6.0, 6.0])


def preprocessing(size: tuple[int, int, int] = (5, 48, 48)) -> Preprocessing:
    spec = InputSpec(mode="slabs", size_voxels=size, spacing_mm=(5.0, 6.0, 6.0), overlap=0.0, skip_air=0.0)
    return Preprocessing((Window(-1024, 500),), spec)


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Angiograms:
    return angiograms(tmp_path_factory.mktemp("angiograms"))


@pytest.fixture(scope="module")
def cohort(patients: Angiograms) -> Cohort:
    files = patients.files
    return read_cohort(
        CohortConfig(
            store=str(patients.store),
            labels=str(files.labels),
            masks=str(files.masks),
            splits=str(files.splits),
            targets=["pe"],
        )
    )


def drawn(cohort: Cohort, count: int, config: SlabsConfig = SLABS, **settings: int) -> list[LabelledBatch]:
    keywords = {"seed": 0, "batch_size": 4, **settings}
    loader = build_slab_loader(cohort, "train", preprocessing(), config, **keywords)
    return list(islice(iter(loader), count))


def test_an_unannotated_slab_of_a_positive_patient_is_never_negative(cohort: Cohort) -> None:
    """S4: draws ask for annotated slabs and slabs of negative patients; whatever else comes is unknown."""
    known: set[tuple[float, float]] = set()
    for batch in drawn(cohort, 6):
        for patient, label, mask, has in zip(
            batch.patient_labels[:, 0].tolist(), batch.labels[:, 0].tolist(), batch.mask, batch.has_mask.tolist(),
            strict=True,
        ):  # fmt: skip
            shown = float(mask.sum()) > 0
            assert label == (0.0 if patient == 0 else 1.0)
            assert shown == (patient == 1)
            assert has
            known.add((patient, label))
    assert known == {(0.0, 0.0), (1.0, 1.0)}


def test_slabs_off_the_annotated_slices_are_unknown_and_without_mask(cohort: Cohort) -> None:
    """S4, for the slab itself: beside its lesion a positive patient's slab has neither label nor mask."""
    far = replace(SLABS, spatial=SpatialConfig())
    loader = build_slab_loader(cohort, "train", preprocessing(), far, seed=0, batch_size=8)
    labels = loader._labels  # the rule itself, on a slab that shows nothing
    batch = next(iter(loader))
    windows = [w for w in loader._reader.read(list(range(8))).windows]
    facts = labels.of(windows, torch.zeros_like(batch.mask), batch.valid)
    patient = facts["patient_labels"][:, 0]
    assert facts["labels"][patient == 1].isnan().all()
    assert not facts["has_mask"][patient == 1].any()
    assert (facts["labels"][patient == 0] == 0).all()
    assert facts["has_mask"][patient == 0].all()


def test_half_of_the_draws_are_annotated_and_shares_are_exact(cohort: Cohort) -> None:
    for share in (0.5, 0.25):
        batches = drawn(cohort, 2, replace(SLABS, positive=share))
        labels = torch.cat([batch.labels for batch in batches])
        assert float((labels == 1).float().mean()) == share


def test_draws_depend_on_seed_and_number_alone(cohort: Cohort) -> None:
    """Two ranks, workers and a start in the middle show what one process shows from the beginning."""
    config = replace(SLABS, spatial=SpatialConfig(flip=[0.0, 0.0, 0.5], scale=[0.9, 1.1]))
    whole = drawn(cohort, 2, config)
    second = drawn(cohort, 1, config, start_draw=4)[0]
    assert torch.equal(second.volumes, whole[1].volumes)
    ranks = [drawn(cohort, 1, config, batch_size=2, world_size=2, rank=rank)[0] for rank in (0, 1)]
    assert torch.equal(torch.cat([part.volumes for part in ranks]), whole[0].volumes)
    assert torch.equal(torch.cat([part.mask for part in ranks]), whole[0].mask)
    other = drawn(cohort, 1, config, seed=1)[0]
    assert not torch.equal(other.volumes, whole[0].volumes)


def test_a_training_slab_is_what_prediction_cuts_there(cohort: Cohort) -> None:
    """Both lie on one grid: slab k of prediction is a training slab whose first slice is that of slab k."""
    sample, prepared = cohort.of("train")[0], preprocessing()
    scan = scan_of_entry(prepared, cohort.store, sample.entry)
    grid = prepared.grid(scan)
    batch = drawn(cohort, 1)[0]
    number = batch.entries.index(sample.entry.id) if sample.entry.id in batch.entries else None
    assert number is not None
    candidates = [[z, *grid.starts[0, 1:]] for z in range(grid.shape[0] - 4)]
    cuts = torch.stack([(cut_tile(scan, grid, np.array(c)).clamp(-1024, 500) + 1024) / 1524 for c in candidates])
    nearest = (cuts - batch.volumes[number, 0]).abs().amax((1, 2, 3)).min()
    assert float(nearest) < 1e-5


def test_consecutive_slabs_cover_the_series_once_in_z_order() -> None:
    affine = np.diag([2.0, 0.7, 0.7, 1.0])
    grid = plan_slabs((97, 512, 500), affine, size=(5, 384, 384), spacing_mm=(2.5, 0.0, 0.0))
    assert grid.spacing_mm == pytest.approx((2.5, 0.7, 0.7))
    assert grid.shape[0] == 78
    z = grid.starts[:, 0]
    assert np.all(np.diff(z) == 5)
    assert z[0] <= 0
    assert z[-1] + 5 >= grid.shape[0]
    assert (z[-1] + 5 - grid.shape[0]) - -z[0] in (0, 1)
    assert {tuple(row) for row in grid.starts[:, 1:].tolist()} == {(64, 58)}


def test_the_lesions_voxel_lies_in_a_positive_slab(cohort: Cohort) -> None:
    sample = next(s for s in cohort.of("train") if s.mask is not None)
    mask = cohort.masks.mask(sample.entry, sample.mask)
    for middle, spread in ((1.0, 5), (0.0, 1)):
        places = SlabPlaces(preprocessing(), replace(SLABS, middle=middle))
        only = replace(mask, points=mask.points[:1], lesion=np.zeros(1, dtype=np.int32))
        random = np.random.default_rng(0)
        offsets = set()
        for _ in range(40):
            place = places(sample.entry, kind="positive", mask=only, random=random)
            inside = np.linalg.solve(place.to_level0, [*only.points[0], 1.0])[0]
            assert -0.5 <= inside <= 4.5
            offsets.add(round(inside))
        assert len(offsets) == spread


def test_a_smaller_budget_is_part_of_a_larger_one(cohort: Cohort) -> None:
    def of(**numbers: int) -> tuple[set[str], set[str]]:
        samples = within_budget(cohort, BudgetConfig(**numbers)).of("train")
        return {s.patient for s in samples}, {s.patient for s in samples if s.mask is not None}

    everyone, masked = of()
    assert len(everyone) == 4
    assert len(masked) == 2
    few, one = of(patients=2)
    assert len(few) == 2
    assert len(one) == 1
    assert few < everyone
    same, single = of(masks=1)
    assert same == everyone
    assert len(single) == 1
    assert single < masked
    kept = within_budget(cohort, BudgetConfig(masks=1))
    assert kept.of("test") == cohort.of("test")
    bare = next(s for s in kept.of("train") if s.labels[0] == 1 and s.mask is None)
    assert not bare.has_mask  # unknown, not empty
    for wrong in ({"patients": 5}, {"masks": 3}):
        with pytest.raises(ConfigError, match="budget"):
            within_budget(cohort, BudgetConfig(**wrong))
    with pytest.raises(ConfigError, match="not negative"):
        BudgetConfig(masks=-1)


def test_one_class_short_series_and_wrong_settings_are_refused(cohort: Cohort) -> None:
    """Bad input: a one-class training set, slabs taller than the series, another mode, modality or orientation."""
    samples = cohort.of("train")
    for label in (0.0, 1.0):
        with pytest.raises(DataError, match="needs both"):
            slab_pools([s for s in samples if s.labels[0] == label], SLABS, "train")
    with pytest.raises(DataError, match="needs both"):
        slab_pools([replace(s, mask=None) for s in samples], SLABS, "train")
    tall = preprocessing((40, 48, 48))
    with pytest.raises(DataError, match=r"shorter than one slab of 200 mm.*patient"):
        build_slab_loader(cohort, "train", tall, SLABS, seed=0, batch_size=2)
    with pytest.raises(ConfigError, match="expected 'slabs'"):
        check_input(replace(tall, input=InputSpec()))
    with pytest.raises(ConfigError, match="orientation"):
        check_input(replace(tall, orientation="LPS"))
    with pytest.raises(DataError, match="takes MR"):
        build_slab_loader(cohort, "train", replace(preprocessing(), modality="MR"), SLABS, seed=0, batch_size=2)
    for wrong in (
        {"positive": 1.0}, {"size": [0, 8, 8]}, {"spacing_mm": [0.0, 1.0, 1.0]},
        {"spatial": SpatialConfig(flip=[0.5, 0.0, 0.0])}, {"spatial": SpatialConfig(rotation_degrees=[0.0, 5.0, 0.0])},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="slabs"):
            check_slabs(replace(SLABS, **wrong))
    with pytest.raises(ConfigError, match="overlap and skip_air"):
        InputSpec(mode="slabs", overlap=0.5, skip_air=0.0)
    with pytest.raises(ConfigError, match="spacing_mm"):
        InputSpec(mode="tiles", spacing_mm=(2.5, 0.0, 0.0))


def test_the_annotation_is_sparse_and_the_reference_whole(patients: Angiograms) -> None:
    from fmct.io.masks import read_mask

    name = next(iter(sorted(path.parent.name for path in patients.files.masks.rglob("*.nii.gz"))))
    few, all_ = (
        read_mask(Path(f) / name / "ctpa_pe.nii.gz").voxels for f in (patients.files.masks, patients.files.references)
    )
    held, annotated = np.flatnonzero(all_.any((1, 2))), np.flatnonzero(few.any((1, 2)))
    assert set(annotated) < set(held)
    np.testing.assert_array_equal(few[annotated], all_[annotated])
