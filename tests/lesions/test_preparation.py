"""What the networks see: lesions bright whatever the sign, the brain alone, and the way back to the scan's own grid."""

import numpy as np
import pytest

from fmct.errors import ConfigError, DataError
from fmct.lesions.bias_field import BiasFieldConfig
from fmct.lesions.preparation import PreparationConfig, Prepared, load_prepared, prepare, save_prepared, to_grid
from fmct.normalise import Normalisation
from fmct.phantoms.body import axial_affine
from fmct.volume import Volume
from fmct.windows import Window
from tests.lesions.small_brains import brain

MR = PreparationConfig(symmetry_radii_mm=[3.0])


def prepared(sign: str, config: PreparationConfig = MR) -> tuple[Prepared, object]:
    phantom = brain(5, lesions=3, sign=sign)
    return prepare(
        phantom.image, config, sign=sign, brain=phantom.brain, lesions=phantom.lesions.voxels, where="series s"
    ), phantom


@pytest.mark.parametrize(
    ("sign", "kind"),
    [("dark", "percentile"), ("dark", "max_invert"), ("dark", "zscore_mask"), ("bright", "zscore_mask")],
)
def test_lesions_are_bright_whatever_the_sequence(sign: str, kind: str) -> None:
    config = PreparationConfig(normalisation=Normalisation(kind, signed=sign == "bright"), symmetry_radii_mm=[3.0])
    found, _ = prepared(sign, config)
    image, symmetry = found.channels
    assert image[found.lesions].mean() > np.percentile(image[found.brain], 90)
    assert symmetry[found.lesions].max() > 10 * symmetry[found.brain].mean()
    assert not image[~found.brain].any()


def test_the_way_back_is_exact_on_the_scans_own_grid() -> None:
    """B.13, 25: the output's grid is the input's."""
    found, phantom = prepared("dark")
    image = phantom.image  # type: ignore[attr-defined]
    back = to_grid(found.lesions.astype(np.int32), found.affine, image.shape, image.affine, order=0)
    np.testing.assert_array_equal(back > 0, phantom.lesions.voxels > 0)  # type: ignore[attr-defined]


def test_a_working_grid_keeps_every_lesion(tmp_path: object) -> None:
    config = PreparationConfig(symmetry_radii_mm=[6.0], spacing_mm=[5.0, 6.0, 6.0])
    found, phantom = prepared("dark", config)
    assert found.spacing_mm == pytest.approx((5.0, 6.0, 6.0))
    from scipy import ndimage

    count = ndimage.label(phantom.lesions.voxels, np.ones((3, 3, 3)))[1]  # type: ignore[attr-defined]
    assert count == len(phantom.diameters_mm) == ndimage.label(found.lesions, np.ones((3, 3, 3)))[1]  # type: ignore[attr-defined]
    path = tmp_path / "s.npz"  # type: ignore[operator]
    save_prepared(path, found)
    again = load_prepared(path)
    np.testing.assert_array_equal(again.channels, found.channels)
    assert again.known is True


def test_bad_input_is_refused_with_the_series_named() -> None:
    """Wrong modality, an empty brain mask, none at all, and settings that contradict each other."""
    phantom = brain(5, lesions=1)
    ct = Volume(np.zeros((4, 4, 4), np.int16), axial_affine((4, 4, 4), (1, 1, 1)))
    with pytest.raises(DataError, match="series s: is CT, and this detector takes MR"):
        prepare(ct, MR, sign="dark", where="series s")
    nothing = Volume(np.zeros_like(phantom.brain.voxels), phantom.brain.affine, "mask", "fraction")
    with pytest.raises(DataError, match="series s: its brain mask is empty"):
        prepare(phantom.image, MR, sign="dark", brain=nothing, where="series s")
    with pytest.raises(DataError, match="it has no brain mask"):
        prepare(phantom.image, MR, sign="dark", where="series s")
    with pytest.raises(ConfigError, match="lesion_sign"):
        prepare(phantom.image, MR, sign="", brain=phantom.brain)
    with pytest.raises(ConfigError, match="max_invert"):
        prepare(
            phantom.image,
            PreparationConfig(normalisation=Normalisation("max_invert")),
            sign="bright",
            brain=phantom.brain,
        )
    for wrong in (
        {"modality": "CT"},
        {"windows": [Window(0, 1)]},
        {"modality": "CT", "normalisation": Normalisation("none")},
        {"brain": "guessed"},
        # B.13.13: the bias field is of magnitudes; a signed QSM is refused before a series is read, and CT too.
        {"bias_field": BiasFieldConfig(enabled=True), "normalisation": Normalisation("zscore_mask", signed=True)},
        {
            "bias_field": BiasFieldConfig(enabled=True),
            "modality": "CT",
            "normalisation": Normalisation("none"),
            "windows": [Window(0, 1)],
        },
    ):
        with pytest.raises(ConfigError, match="prepare"):
            PreparationConfig(**wrong)  # type: ignore[arg-type]


def test_ct_goes_the_same_way_through_a_window() -> None:
    """Issue: the same task runs on CT nodules."""
    voxels = np.full((20, 20, 20), -900, np.int16)
    voxels[8:12, 8:12, 8:12] = 40
    config = PreparationConfig(
        modality="CT", normalisation=Normalisation("none"), windows=[Window(-1000, 400)], brain="whole",
        symmetry_radii_mm=[2.0],
    )  # fmt: skip
    truth = (voxels > 0).astype(np.float32)
    found = prepare(Volume(voxels, axial_affine(voxels.shape, (1, 1, 1))), config, sign="bright", lesions=truth)
    assert found.channels[0][found.lesions].mean() > found.channels[0][~found.lesions].mean()
    assert found.channels[1][8:12, 8:12, 8:12].max() == 1.0
