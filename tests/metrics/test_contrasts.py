import numpy as np
import pytest

from fmct.errors import DataError
from fmct.metrics.contrasts import Contrast, average_seeds, compare_arms, holm, sign_flip_test
from tests.metrics.references_metrics import sign_flips

RANDOM = np.random.default_rng(0)
PATIENTS = [f"p{k:02d}" for k in range(12)]


@pytest.mark.parametrize("n", [1, 6, 9])
def test_sign_flips_try_every_pattern(n: int) -> None:
    x = RANDOM.normal(0.5, 1, n)
    assert sign_flip_test(x) == pytest.approx(sign_flips(x.tolist()))


def test_sign_flips_of_known_vectors() -> None:
    assert sign_flip_test([1, 2, 3, 4, 5, 6]) == pytest.approx(2 / 64)
    assert sign_flip_test(np.zeros(8)) == 1.0
    many = RANDOM.normal(1, 1, 30)
    assert sign_flip_test(many, resamples=999) == pytest.approx(2 / 1000)  # nothing as extreme, either side
    assert sign_flip_test(many, seed=1) == sign_flip_test(many, seed=1)
    with pytest.raises(ValueError, match="finite"):
        sign_flip_test([1.0, float("nan")])


def test_holm_of_known_vectors() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, None, 0.9]) == [1.0, None, 1.0]
    assert holm([0.02, None]) == [0.02, None]
    assert holm([]) == []


def test_seeds_are_averaged_within_a_patient_first() -> None:
    seeds = [{p: float(RANDOM.normal()) for p in PATIENTS} for _ in range(4)]
    means = {p: float(np.mean([s[p] for s in seeds])) for p in PATIENTS}
    assert average_seeds(seeds) == pytest.approx(means)
    base = dict.fromkeys(PATIENTS, 0.0)
    one = compare_arms({"a": seeds, "b": base}, [Contrast("a", "b")], resamples=200)[0]
    other = compare_arms({"a": means, "b": base}, [Contrast("a", "b")], resamples=200)[0]
    assert one == other
    assert one.difference.n == 12  # patients, not patients × seeds
    with pytest.raises(DataError, match="not in every seed"):
        average_seeds([seeds[0], {"p00": 1.0}])


def test_contrasts_are_corrected_over_the_list() -> None:
    arms = {
        "scratch": {p: 0.5 + 0.01 * k for k, p in enumerate(PATIENTS)},
        "pretrained": {p: 0.55 + 0.01 * k for k, p in enumerate(PATIENTS)},
    }
    arms["other"] = {p: v + RANDOM.normal(0, 0.05) for p, v in arms["scratch"].items()}
    listed = [Contrast.parse("pretrained - scratch"), Contrast.parse("other,scratch")]
    first, second = compare_arms(arms, listed, resamples=200)
    assert first.difference.estimate == pytest.approx(0.05)
    assert first.p == pytest.approx(2 / 2**12)
    assert first.p_holm == pytest.approx(4 / 2**12)
    assert second.p_holm == second.p  # the larger of the two is compared with the level itself
    assert "every resample" in first.difference.note


def test_few_patients_get_the_value_alone() -> None:
    arms = {"a": {p: 1.0 + k for k, p in enumerate(PATIENTS[:5])}, "b": dict.fromkeys(PATIENTS, 0.0)}
    result = compare_arms(arms, [Contrast("a", "b")])[0]
    assert (result.difference.estimate, result.difference.low, result.p, result.p_holm) == (3.0, None, None, None)


def test_unknown_arms_and_texts_are_explained() -> None:
    with pytest.raises(DataError, match="there is no 'c'"):
        compare_arms({"a": {}, "b": {}}, [Contrast("a", "c")])
    with pytest.raises(DataError, match="expected two names"):
        Contrast.parse("dual")
    assert str(Contrast.parse("dual-phase − ct")) == "dual-phase − ct"
