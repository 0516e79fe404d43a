import numpy as np
import pytest

from fmct.errors import DataError
from fmct.lesions.preparation import PreparationConfig, prepare
from fmct.normalise import Normalisation, normalise_volume
from tests.lesions.brains import ball, volume


def test_a_normalised_series_is_not_prepared_again() -> None:
    """B.13.27: an inverted series put through the pipeline would be searched with the wrong sign: refused by name."""
    shape = (12, 16, 16)
    noise = np.random.default_rng(0).normal(0, 1, shape)
    scan = volume(np.where(ball(shape, (1.0,) * 3, 5.5), 100 + noise, abs(noise)))
    config = PreparationConfig(normalisation=Normalisation("max_invert"), brain="whole")
    assert np.isfinite(prepare(scan, config, sign="dark").channels).all()
    with pytest.raises(DataError, match=r"a\.nii: this series was normalised already \(max_invert\)"):
        prepare(normalise_volume(scan, Normalisation("max_invert")), config, sign="dark", where="a.nii")
