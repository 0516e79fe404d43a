import numpy as np
import pytest

from fmct.probes.ridge import fit_ridge


def slow_ridge(x: np.ndarray, y: np.ndarray, penalty: float, new: np.ndarray) -> np.ndarray:
    mean, deviation = x.mean(0), x.std(0)
    z = (x - mean) / deviation
    weights = np.linalg.solve(z.T @ z + penalty * np.eye(z.shape[1]), z.T @ (y - y.mean(0)))
    return (new - mean) / deviation @ weights + y.mean(0)


@pytest.mark.parametrize("shape", [(50, 7), (12, 30)])
def test_ridge_is_the_normal_equations_solution(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    x, y, new = random.normal(3, 2, shape), random.normal(size=(shape[0], 2)), random.normal(3, 2, (5, shape[1]))
    model = fit_ridge(x, y, ["a"] * shape[0], penalties=[2.5])
    np.testing.assert_allclose(model.predict(new), slow_ridge(x, y, 2.5, new), atol=1e-8)


def test_the_penalty_is_chosen_on_whole_groups() -> None:
    random = np.random.default_rng(1)
    groups = np.repeat([f"g{k}" for k in range(8)], 12)
    # Each group has its own signature: rows of a group tell each other's target, other groups' rows do not.
    signature = np.repeat(random.normal(size=(8, 20)), 12, axis=0)
    x = signature + 0.01 * random.normal(size=signature.shape)
    y = np.repeat(random.normal(size=(8, 1)), 12, axis=0)
    by_group = fit_ridge(x, y, groups, penalties=(1e-3, 1e4))
    by_row = fit_ridge(x, y, [str(k) for k in range(96)], penalties=(1e-3, 1e4))
    assert by_group.penalty == 1e4
    assert by_row.penalty == 1e-3


def test_a_constant_feature_is_harmless() -> None:
    random = np.random.default_rng(2)
    x = np.concatenate([random.normal(size=(40, 1)), np.full((40, 1), 7.0)], axis=1)
    model = fit_ridge(x, 2 * x[:, :1], [str(k % 5) for k in range(40)])
    assert np.abs(model.predict(x) - 2 * x[:, :1]).max() < 0.05
