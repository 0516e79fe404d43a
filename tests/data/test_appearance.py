import numpy as np

from fmct.data.appearance import Appearance, sample_appearance
from fmct.data.view_config import AppearanceConfig, Chance
from fmct.randomness import generator


def many(config: AppearanceConfig, count: int = 600) -> list[Appearance]:
    return [sample_appearance(config, generator(0, draw), noise_key=draw) for draw in range(count)]


def test_probabilities_and_ranges_are_kept() -> None:
    looks = many(AppearanceConfig(shift_hu=Chance(0.3, [4, 8]), gamma=Chance(1, [0.5, 2])))
    shifts = np.array([look.shift for look in looks])
    assert abs(np.mean(shifts != 0) - 0.3) < 0.06
    assert set(np.unique(shifts[shifts != 0] >= 4)) == {True}
    assert shifts.max() <= 8
    gammas = np.array([look.gamma for look in looks])
    assert 0.5 <= gammas.min() < 0.6
    assert 1.9 < gammas.max() <= 2


def test_at_most_one_of_the_named_happens() -> None:
    looks = many(
        AppearanceConfig(
            noise_hu=Chance(1, [5, 5]), gamma=Chance(1, [0.5, 0.5]), histogram=Chance(1, [5, 5]),
            one_of=["noise_hu", "gamma", "histogram"], one_of_probability=0.8,
        )
    )  # fmt: skip
    happened = np.array([[look.noise > 0, look.gamma != 1, bool(look.histogram)] for look in looks])
    assert happened.sum(axis=1).max() == 1
    assert abs(happened.any(axis=1).mean() - 0.8) < 0.06
    assert (happened.mean(axis=0) > 0.2).all()


def test_histogram_curves_rise_from_zero_to_one() -> None:
    for look in many(AppearanceConfig(histogram=Chance(1, [3, 10])), 50):
        assert look.histogram[0] == 0
        assert look.histogram[-1] == 1
        assert (np.diff(look.histogram) >= 0).all()


def test_the_default_look_changes_nothing() -> None:
    assert Appearance().linear
    none = AppearanceConfig(shift_hu=Chance(), gain=Chance(), blur=Chance(), noise_hu=Chance())
    assert sample_appearance(none, generator(0, 0), noise_key=3) == Appearance(noise_key=3)
