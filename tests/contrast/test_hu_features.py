"""What HU say without a network: vessels by threshold without bone, NaN for what is not there."""

import numpy as np
import pytest

from fmct.contrast.hu_features import FEATURES, hu_features, scan_features
from fmct.preprocess import InputSpec, Preprocessing
from fmct.windows import Window
from tests.contrast import bright_vessels


def of(volume: bright_vessels.Volume) -> dict[str, float]:
    return dict(zip(FEATURES, hu_features(volume.voxels, volume.spacing).tolist(), strict=True))


def test_vessels_stand_out_and_bone_does_not() -> None:
    native, arterial = (of(bright_vessels.volume(3, phase)) for phase in ("native", "arterial"))
    assert native["vessels_ml"] == 0
    assert np.isnan(native["vessel1_ml"])
    assert native["bone_ml"] == arterial["bone_ml"] > 100
    # The artery: a tube of radius 1.7 voxels of 6 mm through 216 mm.
    assert arterial["vessel1_ml"] == pytest.approx(np.pi * (1.7 * 6) ** 2 * 216 / 1000, rel=0.3)
    assert arterial["vessel1_mean_hu"] == pytest.approx(302, abs=6)
    assert arterial["vessel1_length_mm"] == 216


def test_organs_tell_the_portal_phase() -> None:
    found = {phase: of(bright_vessels.volume(4, phase)) for phase in bright_vessels.RISES}
    assert found["portal"]["tissue_p95"] > found["delayed"]["tissue_p95"] > found["native"]["tissue_p95"]
    assert found["portal"]["organ_mean_hu"] > found["delayed"]["organ_mean_hu"]


def test_shares_are_of_the_body_and_absence_is_not_zero() -> None:
    found = of(bright_vessels.volume(5, "arterial"))
    assert 0.3 < sum(value for name, value in found.items() if name.startswith("share_")) <= 1
    air = dict(zip(FEATURES, hu_features(np.full((20, 20, 20), -1000, np.int16), (3.0, 3.0, 3.0)), strict=True))
    assert air["body_ml"] == 0
    assert np.isnan([air["tissue_p50"], air["vessels_ml"], air["noise_hu"]]).all()


def test_a_scan_and_its_scale_give_the_volume_s_features() -> None:
    """Through preprocessing in another orientation, the body's axis is found again."""
    volume = bright_vessels.volume(6, "portal")
    spec = InputSpec(mode="axial", size_voxels=(8, 8, 8), spacing_mm=(6.0, 6.0, 6.0))
    direct = hu_features(volume.voxels, volume.spacing)
    turned = scan_features(Preprocessing((Window(-100, 300),), spec, orientation="LAS").scan(volume))
    assert np.allclose(turned, direct, rtol=0.05, atol=2.0, equal_nan=True)
    halved = hu_features(volume.voxels.astype(np.float32) / 2, volume.spacing, scale=2.0)
    assert np.allclose(halved, direct, rtol=1e-4, equal_nan=True)
