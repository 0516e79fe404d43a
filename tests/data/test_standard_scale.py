"""MR from files to batches: loading what is at hand, and normalisation fitted to training patients alone."""

import nibabel as nib
import numpy as np
import pytest
import torch

from fmct.data.cohort import CohortConfig, read_cohort
from fmct.data.labelled import build_labelled_loader, series_batches
from fmct.data.standard_scale import fit_to_training
from fmct.data.view_config import Chance
from fmct.data.window_config import IntensityConfig, SharesConfig, WindowsConfig
from fmct.downstream.config import InputConfig
from fmct.errors import ConfigError, DataError
from fmct.normalise import Normalisation, fit_nyul
from fmct.preprocess import InputSpec, Preprocessing
from fmct.store.ingest import IngestConfig, ingest
from fmct.table_files import write_rows
from fmct.windows import Window
from tests.lesions.brains import ball

SHAPE = (16, 20, 18)
SIZE = (8, 8, 8)


def series(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = np.where(ball(SHAPE, (1.0,) * 3, 8.0), random.gamma(9, 10 + seed, SHAPE), random.random(SHAPE))
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CohortConfig:
    """Return four patients of MR, the last one in test."""
    folder = tmp_path_factory.mktemp("mr")
    rows = []
    for number in range(4):
        path = folder / "scans" / f"p{number}" / "t2star.nii.gz"
        path.parent.mkdir(parents=True)
        nib.Nifti1Image(series(number).T, np.eye(4)).to_filename(path)
        rows.append({"patient": f"p{number}", "sick": number % 2, "split": "test" if number == 3 else "train"})
    config = IngestConfig(modality="MR", workers=1, patient_regex="(p[0-9])/")
    assert ingest([folder / "scans"], folder / "store", config=config).taken == 4
    write_rows(folder / "labels.csv", ("patient", "sick", "split"), rows)
    return CohortConfig(store=str(folder / "store"), labels=str(folder / "labels.csv"), targets=["sick"])


def preprocessing(kind: str, **settings: object) -> Preprocessing:
    spec = InputSpec("tiles", SIZE, (1.0, 1.0, 1.0), foreground_above=None)
    return Preprocessing((), spec, modality="MR", normalisation=Normalisation(kind, **settings))


def test_the_standard_scale_is_that_of_the_training_patients(data: CohortConfig) -> None:
    cohort = read_cohort(data)
    unfitted = preprocessing("nyul")
    fitted = fit_to_training(unfitted, cohort)
    volumes = [cohort.store.volume(sample.entry).voxels for sample in cohort.of("train")]
    expected = fit_nyul([unfitted.normalisation.inside(values) for values in volumes], unfitted.normalisation)
    np.testing.assert_allclose(fitted.normalisation.standard, expected.standard, atol=1e-5)
    assert fit_to_training(fitted, cohort) is fitted
    everyone = [unfitted.normalisation.inside(cohort.store.volume(s.entry).voxels) for s in cohort.samples]
    assert not np.allclose(fit_nyul(everyone, unfitted.normalisation).standard, expected.standard, atol=1e-5)
    cohort.store.close()


@pytest.mark.parametrize("kind", ["zscore_mask", "nyul"])
def test_training_windows_and_tiles_are_normalised_alike(data: CohortConfig, kind: str) -> None:
    """What a training window shows is the series' own curve at its voxels, and so is a tile."""
    cohort = read_cohort(data)
    ready = fit_to_training(preprocessing(kind), cohort)
    by_entry = {}
    for sample in cohort.samples:
        values = cohort.store.volume(sample.entry).voxels
        by_entry[sample.entry.id] = np.sort(ready.normalisation.fitted(values).of_array(values).ravel())
    config = WindowsConfig(shares=SharesConfig(0, 0, 1.0), label_scope="global", body_above=None)
    batch = next(iter(build_labelled_loader(cohort, "train", ready, config, seed=0, batch_size=4)))
    lowest, highest = (
        f(v) for f, v in ((min, [v[0] for v in by_entry.values()]), (max, [v[-1] for v in by_entry.values()]))
    )
    assert torch.isfinite(batch.volumes).all()
    assert lowest - 1e-3 <= batch.volumes.min() < batch.volumes.max() <= highest + 1e-3
    for sample, tiles in series_batches(cohort, "test", ready, batch_size=64):
        own = by_entry[sample.entry.id]
        found = tiles.tensor.numpy().ravel()
        nearest = np.clip(np.searchsorted(own, found), 1, len(own) - 1)
        apart = np.minimum(np.abs(own[nearest] - found), np.abs(own[nearest - 1] - found))
        assert apart.max() < 1e-3 * max(1.0, abs(own).max())
    cohort.store.close()


def test_what_does_not_go_with_a_normalisation_is_refused(data: CohortConfig) -> None:
    cohort = read_cohort(data)
    gamma = WindowsConfig(intensity=IntensityConfig(gamma=Chance(1.0, [0.5, 2.0])), label_scope="global")
    with pytest.raises(ConfigError, match=r"windows\.intensity\.gamma"):
        build_labelled_loader(cohort, "train", preprocessing("zscore_mask"), gamma, seed=0, batch_size=1)
    spec = InputSpec("tiles", SIZE, (1.0, 1.0, 1.0))
    with pytest.raises(DataError, match=r"series \w+: this encoder takes CT, and the series is MR"):
        build_labelled_loader(
            cohort, "train", Preprocessing((Window(-1000, 1000),), spec), WindowsConfig(), seed=0, batch_size=1
        )
    assert InputConfig(modality="MR", normalisation=Normalisation("zscore_mask")).windows == []
    cohort.store.close()
