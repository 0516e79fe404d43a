"""Clocks count what they say."""

import time

import pytest

from fmct.bench.timing import Cost, copy_rate, cost_of, median_ms, spread_ms


def test_sleep_costs_the_wall_and_not_the_processor():
    cost = cost_of(lambda: time.sleep(0.05))
    assert cost.wall >= 0.05
    assert cost.cpu < cost.wall


def test_medians_and_spread():
    costs = [Cost(cpu=n / 1000, wall=2 * n / 1000) for n in (1, 2, 3, 4, 100)]
    assert median_ms(costs) == pytest.approx(3.0)
    spread = spread_ms(costs)
    assert spread["p95_ms"] == pytest.approx(80.8)
    assert spread["wall_median_ms"] == pytest.approx(6.0)
    assert spread["samples"] == 5


def test_copy_rate_is_bytes_both_ways():
    assert copy_rate(1 << 20) > 1e6
