import math

import numpy as np
import pytest

from fmct.errors import ConfigError
from fmct.train.schedule import Schedule, ScheduleConfig, constant, ramp, scaled_learning_rate, updates, value_at


def dinov2(base: float, final: float, total: int, warmup: int, start: float) -> np.ndarray:
    """DINOv2's cosine: a warm-up that ends on the base value, then a cosine that never quite arrives."""
    steps = np.arange(total - warmup)
    way = final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / len(steps)))
    return np.concatenate([np.linspace(start, base, warmup), way])


def dinov3(peak: float, end: float, total: int, warmup: int, start: float, tail: int) -> np.ndarray:
    """DINOv3's: a warm-up short of the peak, a cosine over both ends, a constant tail."""
    way = np.cos(np.linspace(0, np.pi, total - warmup - tail))
    return np.concatenate(
        [np.linspace(start, peak, warmup, endpoint=False), end + 0.5 * (peak - end) * (1 + way), np.full(tail, end)]
    )


def values(config: ScheduleConfig, total: int) -> np.ndarray:
    return np.array([value_at(config, step, total) for step in range(total)])


@pytest.mark.parametrize(("total", "warmup"), [(50, 10), (50, 0), (7, 2), (9, 1)])
def test_dinov2_cosine(total: int, warmup: int) -> None:
    config = ScheduleConfig(peak=4e-3, start=1e-5, end=1e-6, warmup=warmup / total, kind="cosine-dinov2")
    np.testing.assert_allclose(values(config, total), dinov2(4e-3, 1e-6, total, warmup, 1e-5), rtol=1e-12)
    assert value_at(config, total, total) == pytest.approx(1e-6)


@pytest.mark.parametrize(("total", "warmup", "tail"), [(50, 10, 0), (50, 10, 5), (20, 0, 0), (20, 4, 4)])
def test_dinov3_cosine(total: int, warmup: int, tail: int) -> None:
    config = ScheduleConfig(peak=0.2, start=0.01, end=0.4, warmup=warmup / total, tail=tail / total)
    np.testing.assert_allclose(values(config, total), dinov3(0.2, 0.4, total, warmup, 0.01, tail), rtol=1e-12)


def test_linear_goes_straight_and_constant_stays() -> None:
    linear = values(ScheduleConfig(peak=1.0, end=0.0, kind="linear"), 11)
    np.testing.assert_allclose(linear, np.linspace(1, 0, 11), atol=1e-15)
    warmed = values(ScheduleConfig(peak=0.07, start=0.04, warmup=0.3, kind="constant"), 10)
    np.testing.assert_allclose(warmed, [0.04, 0.05, 0.06] + [0.07] * 7)
    assert (values(constant(3.0), 4) == 3.0).all()


def test_a_truncated_cosine_stays_above_its_end() -> None:
    full = values(ScheduleConfig(peak=1.0, end=0.0), 101)
    cut = values(ScheduleConfig(peak=1.0, end=0.0, truncate=0.25), 101)
    np.testing.assert_allclose(cut[50], 0.5 * (1 + math.cos(math.pi * 0.4)))
    assert cut[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi / 1.25)))
    assert full[-1] == pytest.approx(0.0)
    assert value_at(ScheduleConfig(peak=1.0, end=0.0, truncate=0.25), 500, 101) == cut[-1]


def test_amounts_are_updates_or_shares() -> None:
    assert updates(0.1, 1000) == 100
    assert updates(25, 1000) == 25
    assert updates(1, 8) == 8
    assert updates(0.25, 10) == 3


@pytest.mark.parametrize(("rule", "expected"), [("none", 2.0), ("linear-256", 1.0), ("sqrt-1024", 2.0 * 128**0.5 / 32)])
def test_learning_rate_rules(rule: str, expected: float) -> None:
    assert scaled_learning_rate(2.0, 128, rule) == pytest.approx(expected)


def test_dinov2_and_dinov3_base_rates_are_the_same_rate() -> None:
    assert scaled_learning_rate(0.004, 2048, "sqrt-1024") == pytest.approx(
        scaled_learning_rate(0.001, 2048, "4sqrt-1024")
    )


def test_the_last_layer_stands_still_while_frozen() -> None:
    schedule = Schedule({"learning_rate": ScheduleConfig(peak=0.1, kind="constant", freeze=3)}, total=10)
    assert [schedule.at(step)["last_layer_learning_rate"] for step in range(5)] == [0, 0, 0, 0.1, 0.1]
    assert schedule.at(0)["learning_rate"] == 0.1


def test_any_value_can_be_scheduled_and_the_rate_is_scaled() -> None:
    named = {"learning_rate": constant(1.0), "weight/ibot": ScheduleConfig(peak=1.0, end=0.0, kind="linear")}
    schedule = Schedule(named, total=3, learning_rate_factor=0.5)
    assert [schedule.at(step)["weight/ibot"] for step in range(3)] == [1.0, 0.5, 0.0]
    assert schedule.at(1)["learning_rate"] == 0.5


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="cosine-dinov2"):
        ScheduleConfig(kind="cosin")
    with pytest.raises(ConfigError, match="negative"):
        ScheduleConfig(warmup=-1)
    with pytest.raises(ConfigError, match="learning_rate"):
        Schedule({"momentum": constant(0.9)}, total=3)
    with pytest.raises(ConfigError, match="sqrt-1024"):
        scaled_learning_rate(1.0, 8, "sqrt")


@pytest.mark.parametrize("total", [10, 200, 12345])
def test_t5_a_ramp_is_zero_at_the_first_step_and_one_after_a_tenth(total: int) -> None:
    """T5: linear in between, and 1 for the rest of the run."""
    config = ramp()
    tenth = updates(0.1, total)
    assert value_at(config, 0, total) == 0
    np.testing.assert_allclose(values(config, total)[:tenth], np.arange(tenth) / tenth, rtol=1e-12)
    assert set(values(config, total)[tenth:]) == {1.0}
    assert value_at(ramp(50), 25, 100) == 0.5
