import pytest
import torch
from torch import nn

from fmct.errors import ConfigError
from fmct.ssl.monitor import ALARMS, HealthConfig, HealthMonitor

K, WIDTH = 16, 4


def monitor(**settings) -> HealthMonitor:
    defaults = {"every": 2, "grace": 4, "patience": 2, "feature_rows": 8, "marginal_rows": 8}
    return HealthMonitor(HealthConfig(**{**defaults, **settings}), num_prototypes={"cls": K}, width=WIDTH)


def sharp(step: int) -> torch.Tensor:
    """Targets that are sharp and change from row to row."""
    return torch.nn.functional.one_hot((torch.arange(4) + 4 * step) % K, K).float()


def spread(step: int) -> torch.Tensor:
    return torch.randn(2, 2, WIDTH, generator=torch.Generator().manual_seed(step))


def run(watch: HealthMonitor, steps: int, targets=sharp, features=spread) -> list[str]:
    """Return the alarms of some forward passes."""
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    alarms = []
    for step in range(steps):
        watch.observe_targets("cls", targets(step))
        watch.observe_features(features(step))
        alarms += watch.measure(teacher, student)
    return alarms


def test_a_healthy_run_raises_nothing_and_always_has_values():
    watch = monitor()
    names = None
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    for step in range(20):
        watch.observe_targets("cls", sharp(step))
        watch.observe_features(spread(step))
        assert watch.measure(teacher, student) == []
        health = watch.health()
        names = names or list(health)
        assert list(health) == names
        assert all(torch.isfinite(torch.as_tensor(value)) for value in health.values())
    assert names is not None
    assert set(names) == {
        *("teacher_entropy", "marginal_entropy", "prototype_usage"),
        *("rank_me", "feature_std", "mean_cosine", "ema_distance", "alarms"),
    }


def one_point(step: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.full((4,), 3), K).float()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("uniform-collapse", {"targets": lambda step: torch.full((4, K), 1 / K)}),
        ("point-collapse", {"targets": one_point}),
        ("rank-collapse", {"features": lambda step: spread(step)[..., :1] * torch.ones(WIDTH)}),
        ("constant-features", {"features": lambda step: torch.ones(2, 2, WIDTH)}),
    ],
)
def test_each_alarm_fires_once_after_grace_and_patience(name, change):
    watch = monitor()
    assert run(watch, 6, **change) == []  # measured at 1, 3, 5, 7; counted from 5 on
    alarms = run(watch, 4, **change)
    assert [alarm.split()[0] for alarm in alarms if alarm.startswith(name)] == [name]
    assert ALARMS[name] in " ".join(alarms)
    assert watch.health()["alarms"] >= 1


def test_an_alarm_ends_when_the_measure_recovers():
    watch = monitor()
    run(watch, 12, features=lambda step: torch.ones(2, 2, WIDTH))
    assert "constant-features" in watch.active
    run(watch, 12)
    assert watch.active == []


def test_state_comes_back_exactly_in_the_middle_of_a_streak():
    unbroken, first, second = monitor(), monitor(), monitor()
    run(unbroken, 5, targets=one_point)
    run(first, 5, targets=one_point)
    second.load(first.state())
    assert run(second, 4, targets=one_point) == run(unbroken, 4, targets=one_point) != []
    ours, theirs = unbroken.health(), second.health()
    assert {name: float(value) for name, value in ours.items() if name != "ema_distance"} == {
        name: float(value) for name, value in theirs.items() if name != "ema_distance"
    }


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        monitor(every=0)
