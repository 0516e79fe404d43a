import numpy as np
import pytest

from fmct.errors import ConfigError, DataError
from fmct.lesions.bias_field import BiasFieldConfig, correct_bias
from tests.lesions.brains import ball, grid

SHAPE, SPACING = (14, 36, 36), (3.0, 1.2, 1.2)
BRAIN = ball(SHAPE, SPACING, 18.0)
FAST = BiasFieldConfig(iterations=[20, 20])


def tissue(noise: float = 2.0) -> np.ndarray:
    random = np.random.default_rng(0)
    core = ball(SHAPE, SPACING, 9.0)
    return np.where(BRAIN, np.where(core, 140.0, 100.0) + random.normal(0, noise, SHAPE), 0.0).astype(np.float32)


def field() -> np.ndarray:
    _, y, x = grid(SHAPE, SPACING)
    return np.exp(0.02 * y + 0.015 * x).astype(np.float32)


def spread(values: np.ndarray) -> float:
    shell = BRAIN & ~ball(SHAPE, SPACING, 11.0)
    return float(values[shell].std() / values[shell].mean())


def test_a_smooth_field_is_taken_out_on_the_inputs_own_grid() -> None:
    """B.13.13: a multiplicative field is reduced; shrinking the fit does not shrink the output."""
    biased = tissue() * field()
    corrected, found = correct_bias(biased, BRAIN, SPACING, FAST)
    assert corrected.shape == found.shape == SHAPE
    assert corrected.dtype == found.dtype == np.float32
    assert spread(corrected) < 0.4 * spread(biased)
    log_found, log_true = np.log(found[BRAIN]), np.log(field()[BRAIN])
    assert np.corrcoef(log_found, log_true)[0, 1] > 0.97
    assert found[BRAIN].mean() == pytest.approx(1.0, abs=0.01)
    np.testing.assert_allclose(corrected * found, biased, rtol=1e-5)


def test_voxels_without_a_logarithm_are_left_out_of_the_fit() -> None:
    """B.13.13: zeros in the brain play no part; the result is finite, and as the one without them."""
    biased = tissue() * field()
    holes = biased.copy()
    holes[5, 10:14, 10:14] = 0.0
    corrected, found = correct_bias(holes, BRAIN, SPACING, FAST)
    assert np.isfinite(corrected).all()
    assert (corrected[5, 10:14, 10:14] == 0).all()
    np.testing.assert_allclose(found[BRAIN], correct_bias(biased, BRAIN, SPACING, FAST)[1][BRAIN], rtol=0.03)


def test_signed_values_are_refused_by_name() -> None:
    """B.13.13: signed QSM has no multiplicative field; a phase image neither."""
    signed = np.random.default_rng(0).normal(0, 0.05, SHAPE)
    with pytest.raises(DataError, match=r"qsm\.nii: bias field: \d+% of the voxels in the brain are negative"):
        correct_bias(signed, BRAIN, SPACING, where="qsm.nii")
    with pytest.raises(DataError, match="no voxel in the brain is positive"):
        correct_bias(np.zeros(SHAPE), BRAIN, SPACING)


def test_masks_and_settings_that_cannot_be_are_refused() -> None:
    """B.13.14 and 26."""
    for mask, error in ((~BRAIN & BRAIN, "brain mask is empty"), (BRAIN[1:], "another grid")):
        with pytest.raises(DataError, match=error):
            correct_bias(tissue(), mask, SPACING)
    with pytest.raises(DataError, match="NaN"):
        correct_bias(np.where(BRAIN, np.nan, 1.0), BRAIN, SPACING)
    with pytest.raises(ConfigError, match="bias_field"):
        BiasFieldConfig(iterations=[])
