"""Nyúl's scale in a detector's run: of the training brains alone, kept with the run, and carried into the model."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fmct.errors import DataError
from fmct.lesions.detector import DetectorRecord
from fmct.lesions.preparation import PreparationConfig, prepare
from fmct.lesions.standard_scale import fitted_to
from fmct.normalise import Normalisation, fit_nyul
from tests.lesions.small_brains import config, pipeline, subjects

NYUL = PreparationConfig(normalisation=Normalisation("nyul"), symmetry_radii_mm=[3.0])


def test_the_scale_is_that_of_the_training_brains(tmp_path: Path) -> None:
    """B.12: the chosen normaliser and its fitted parameters are saved, and a run that goes on finds them."""
    chosen = subjects(train=2, test=1)
    made = pipeline(config(tmp_path / "run", prepare=NYUL), chosen)
    made.run("normalise")
    insides = []
    for subject in chosen[:2]:
        source = subject.read()
        assert source.brain is not None
        insides.append(source.volume.voxels[source.brain.voxels > 0.5].astype(np.float64))
    expected = fit_nyul(insides, Normalisation("nyul")).standard
    np.testing.assert_allclose(made.config.prepare.normalisation.standard, expected, atol=1e-6)
    again = pipeline(config(tmp_path / "run", prepare=NYUL), chosen)
    assert again.stages["prepared"].done
    assert again.config.prepare == made.config.prepare
    record = DetectorRecord.of(again.config, again.trained_spacing())
    assert record.prepare.normalisation.standard == pytest.approx(expected, abs=1e-6)
    assert record.spacing_mm == [[3.6] * 3] * 2
    tested = chosen[2].read()
    prepared = prepare(tested.volume, record.prepare, sign="dark", brain=tested.brain)
    np.testing.assert_array_equal(prepared.channels, made.prepared(chosen[2]).channels)


def test_another_training_split_is_another_scale(tmp_path: Path) -> None:
    chosen = subjects(train=2, test=1)
    first = pipeline(config(tmp_path / "run", prepare=NYUL), chosen)
    first.run("normalise")
    other = pipeline(config(tmp_path / "run", prepare=NYUL, train_split="test"), chosen)
    assert not other.stages["prepared"].done
    other.run("normalise")
    assert other.config.prepare.normalisation.standard != first.config.prepare.normalisation.standard
    plainly = config(tmp_path / "plain")
    kinds = [dataclasses.replace(plainly, train_split=split) for split in ("train", "test")]
    prints = {pipeline(one, chosen).stages["prepared"].fingerprint for one in kinds}
    assert len(prints) == 1  # other kinds are fitted to each series alone


def test_there_must_be_something_to_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the split has none"):
        fitted_to(NYUL, [], sign="dark")
    assert fitted_to(PreparationConfig(), [], sign="dark") == PreparationConfig()
