import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde

from fmct.errors import ArtefactError, ConfigError, DataError
from fmct.normalise import (
    FACT,
    KINDS,
    Normalisation,
    already_normalised,
    check_sign,
    fit_nyul,
    histogram_peak,
    normalise_volume,
)
from fmct.preprocess import InputSpec, Preprocessing
from fmct.windows import Curve
from tests.lesions.brains import ball, volume

SHAPE = (12, 14, 16)
MASK = ball(SHAPE, (1.0, 1.0, 1.0), 5.5)
WHOLE = InputSpec("whole", (4, 4, 4), (1.0, 1.0, 1.0), foreground_above=None)


def magnitudes(seed: int = 0, *, scale: float = 1.0) -> np.ndarray:
    """Return air near 0, and in the mask two tissues."""
    random = np.random.default_rng(seed)
    tissue = np.where(random.random(SHAPE) < 0.3, random.normal(60, 6, SHAPE), random.normal(110, 5, SHAPE))
    return (np.where(MASK, tissue, random.random(SHAPE)) * scale).astype(np.float32)


def setting(kind: str) -> Normalisation:
    chosen = Normalisation(kind)
    if kind != "nyul":
        return chosen
    return fit_nyul([chosen.inside(magnitudes(seed), MASK) for seed in range(3)], chosen)


def test_zscore_percentile_and_inversion_are_what_their_names_say() -> None:
    values = magnitudes().astype(np.float64)
    inside = values[MASK]
    found = {kind: setting(kind).fitted(values, MASK).of_array(values) for kind in KINDS}
    np.testing.assert_allclose(found["zscore_mask"], (values - inside.mean()) / inside.std(), atol=1e-5)
    low, high = np.percentile(inside, [0.5, 99.5])
    np.testing.assert_allclose(found["percentile"], np.clip((values - low) / (high - low), 0, 1), atol=1e-5)
    np.testing.assert_allclose(found["max_invert"], np.clip(1 - values / inside.max(), 0, 1), atol=1e-6)


def slow_nyul(training: list[np.ndarray], values: np.ndarray, percentiles: list[float]) -> np.ndarray:
    """Return values on the standard scale of Nyúl and Udupa, value by value."""
    mapped = []
    for series in training:
        marks = [np.percentile(series, p) for p in percentiles]
        mapped.append([(m - marks[0]) / (marks[-1] - marks[0]) for m in marks])
    standard = [sum(column) / len(column) for column in zip(*mapped, strict=True)]
    own = [np.percentile(values, p) for p in percentiles]
    out = np.empty_like(values)
    for number, value in enumerate(values):
        piece = max(0, min(len(own) - 2, sum(value >= mark for mark in own) - 1))
        share = (value - own[piece]) / (own[piece + 1] - own[piece])
        out[number] = standard[piece] + share * (standard[piece + 1] - standard[piece])
    return out


def test_nyul_is_piecewise_linear_between_averaged_landmarks() -> None:
    training = [magnitudes(seed, scale=1 + seed)[MASK].astype(np.float64) for seed in range(4)]
    fitted = fit_nyul(training, Normalisation("nyul"))
    other = magnitudes(9, scale=37.0)
    found = fitted.fitted(other, MASK).of_array(other)[MASK]
    np.testing.assert_allclose(found, slow_nyul(training, other[MASK].astype(np.float64), fitted.landmarks), atol=1e-4)
    same = fitted.fitted(magnitudes(9), MASK).of_array(magnitudes(9))[MASK]
    np.testing.assert_allclose(found, same, atol=1e-4)  # another scale, the same tissue, the same values


def test_nyul_joins_landmarks_that_fall_together() -> None:
    coarse = np.rint(magnitudes() / 40) * 40
    curve = setting("nyul").fitted(coarse, MASK)
    assert len(curve.knots) < 11
    assert np.isfinite(curve.of_array(coarse)).all()


@pytest.mark.parametrize(("which", "near"), [("first", 60), ("last", 110), ("highest", 110)])
def test_peaks_of_the_histogram_are_those_of_a_kernel_density(which: str, near: float) -> None:
    inside = np.concatenate([magnitudes(seed)[MASK] for seed in range(4)]).astype(np.float64)
    found = histogram_peak(inside, which)
    assert abs(found - near) < 3
    spread = min(inside.std(), np.subtract(*np.quantile(inside, [0.75, 0.25])) / 1.349)
    density = gaussian_kde(inside, bw_method=0.9 * spread * inside.size**-0.2 / inside.std(ddof=1))
    grid = np.linspace(near - 12, near + 12, 961)
    assert found == pytest.approx(grid[density(grid).argmax()], abs=0.3)


def test_white_stripe_is_mean_and_spread_of_the_ranks_about_the_peak() -> None:
    """Shinohara et al. (2014), by sorting."""
    values = magnitudes()
    ordered = np.sort(values[MASK].astype(np.float64))
    rank = int(np.searchsorted(ordered, histogram_peak(ordered, "highest"), side="right"))
    reach = 0.05 * len(ordered)
    stripe = ordered[int(np.ceil(rank - reach)) : int(np.floor(rank + reach))]
    curve = setting("white_stripe").fitted(values, MASK)
    assert curve.knots[0] == pytest.approx(stripe.mean(), abs=0.05)
    assert curve.knots[1] - curve.knots[0] == pytest.approx(stripe.std(), rel=0.1)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_scale_of_a_series_does_not_matter(kind: str) -> None:
    settings = setting(kind)
    expected = settings.fitted(magnitudes(5), MASK).of_array(magnitudes(5))
    scaled = magnitudes(5) * np.float32(1024)
    np.testing.assert_allclose(settings.fitted(scaled, MASK).of_array(scaled), expected, atol=2e-4)


def test_a_curve_is_numpys_interpolation_and_goes_on_or_stops_at_its_ends() -> None:
    values = np.linspace(-3, 9, 200, dtype=np.float32)
    knots, heights = (0.0, 1.0, 4.0, 6.0), (0.0, 0.5, 0.6, 2.0)
    inner = (values >= 0) & (values <= 6)
    for clip in (True, False):
        found = Curve(knots, heights, clip)(torch.from_numpy(values)).numpy()
        np.testing.assert_allclose(found[inner], np.interp(values[inner], knots, heights), atol=1e-6)
        outer = (
            np.interp(values, knots, heights) if clip else np.where(values < 0, values * 0.5, (values - 6) * 0.7 + 2)
        )
        np.testing.assert_allclose(found[~inner], outer[~inner], atol=1e-5)
    with pytest.raises(ConfigError, match="rise"):
        Curve((1.0, 1.0), (0.0, 1.0))


def test_a_volume_says_how_it_was_made_and_is_not_made_twice() -> None:
    """B.13.27: the same again changes nothing, another kind is refused; the paper's inversion twice would undo it."""
    settings = Normalisation("max_invert")
    once = normalise_volume(volume(magnitudes()), settings, MASK)
    assert once.units == "normalised"
    assert once.voxels[~MASK].max() == 0
    assert once.facts[FACT]["masked"] is True
    assert normalise_volume(once, settings, MASK) is once
    stored = replace(once, facts=json.loads(json.dumps(dict(once.facts))))
    assert normalise_volume(stored, settings, MASK) is stored
    with pytest.raises(DataError, match=r"scan\.nii: this series was normalised already \(max_invert\)"):
        normalise_volume(once, Normalisation("zscore_mask"), MASK, where="scan.nii")
    with pytest.raises(DataError, match="normalised already"):
        already_normalised(once.facts, Normalisation())


@pytest.mark.parametrize("kind", list(KINDS))
def test_preprocessing_makes_the_channel_and_takes_a_normalised_volume_as_it_is(kind: str) -> None:
    settings = setting(kind)
    preprocessing = Preprocessing((), WHOLE, modality="MR", normalisation=settings, lesion_sign="dark")
    assert preprocessing.channels == 1
    scan = volume(magnitudes())
    found = preprocessing(scan)[0, 0]
    expected = settings.fitted(scan.voxels).of_array(scan.voxels)
    np.testing.assert_allclose(found[: SHAPE[0], 1:-1].numpy(), expected, atol=1e-4)
    again = preprocessing(normalise_volume(scan, settings))[0, 0]
    torch.testing.assert_close(again[: SHAPE[0], 1:-1], found[: SHAPE[0], 1:-1], atol=1e-4, rtol=0)


def test_preprocess_json_keeps_the_fitted_scale_and_refuses_kinds_it_does_not_know() -> None:
    preprocessing = Preprocessing((), WHOLE, modality="MR", normalisation=setting("nyul"), lesion_sign="dark")
    tree = json.loads(json.dumps(preprocessing.to_dict()))
    assert Preprocessing.from_dict(tree) == preprocessing
    for name, value in (("normalisation", {"kind": "magic"}), ("normalisation", {"kind": "nyul", "spice": 1})):
        with pytest.raises(ArtefactError, match=r"preprocess\.json"):
            Preprocessing.from_dict({**tree, name: value})
    with pytest.raises(ArtefactError, match="lesion_sign"):
        Preprocessing.from_dict({**tree, "lesion_sign": "grey"})
    old = {key: value for key, value in tree.items() if key not in ("normalisation", "lesion_sign")}
    read = Preprocessing.from_dict({**old, "modality": "CT", "windows": [{"low": -1000.0, "high": 1000.0}]})
    assert read.normalisation.kind == "none"
    assert "normalisation" not in read.to_dict()


def test_ct_and_mr_are_never_taken_for_each_other() -> None:
    """B.13.26: CT to an MR model and the reverse, by name; HU with an MR's label, by their values."""
    mr = Preprocessing((), WHOLE, modality="MR", normalisation=Normalisation("zscore_mask"))
    ct = volume(np.where(MASK, 40, -1000), modality="CT")
    with pytest.raises(DataError, match="takes MR, and the series is CT"):
        mr(ct)
    with pytest.raises(DataError, match=r"head\.nii: this encoder takes MR"):
        mr.check_modality("CT", "head.nii")
    with pytest.raises(DataError, match="voxels are negative, and kind zscore_mask takes magnitudes"):
        mr(replace(volume(ct.voxels), modality="MR"))
    signed = replace(mr, normalisation=Normalisation("zscore_mask", signed=True))
    assert torch.isfinite(signed(volume(np.random.default_rng(0).normal(0, 0.1, SHAPE)))).all()
    with pytest.raises(DataError, match="a CT has HU"):
        normalise_volume(ct, Normalisation("zscore_mask"))
    with pytest.raises(ConfigError, match="CT has HU"):
        Preprocessing((), normalisation=Normalisation("zscore_mask"))


@pytest.mark.parametrize(
    ("values", "mask", "error"),
    [
        (np.where(MASK, np.nan, magnitudes()), MASK, "NaN or infinite"),
        (np.where(MASK, np.inf, magnitudes()), None, "NaN or infinite"),
        (magnitudes(), np.zeros(SHAPE, bool), "the mask has 0 voxels"),
        (magnitudes(), MASK[1:], "another grid"),
        (np.full(SHAPE, 7.0), MASK, "nothing to normalise"),
    ],
)
@pytest.mark.parametrize("kind", ["zscore_mask", "percentile", "nyul", "white_stripe"])
def test_series_that_cannot_be_normalised_are_refused_by_name(
    kind: str, values: np.ndarray, mask: np.ndarray | None, error: str
) -> None:
    """B.13.14 and 26: NaN, an empty mask, another grid, a constant series; the file is named."""
    with pytest.raises(DataError, match=rf"a\.nii: .*{error}"):
        setting(kind).fitted(values, mask, where="a.nii")


def test_settings_that_cannot_be_are_refused() -> None:
    for changes, error in (
        ({"kind": "histogram"}, "kind is none or one of"),
        ({"kind": "percentile", "percentiles": [5.0, 1.0]}, "percentiles"),
        ({"kind": "nyul", "standard": [0.0, 1.0]}, "standard"),
        ({"kind": "white_stripe", "peak": "middle"}, "peak"),
        ({"kind": "max_invert", "signed": True}, "magnitudes"),
    ):
        with pytest.raises(ConfigError, match=error):
            Normalisation(**changes)
    with pytest.raises(ConfigError, match="standard scale"):
        Normalisation("nyul").fitted(magnitudes())
    with pytest.raises(ConfigError, match="no curve"):
        Normalisation().fitted(magnitudes())
    with pytest.raises(DataError, match="no training series"):
        fit_nyul([], Normalisation("nyul"))
    for sign in ("", "grey"):
        with pytest.raises(ConfigError, match="lesion_sign: say whether"):
            check_sign(sign)
