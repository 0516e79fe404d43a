from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fmct.errors import ConfigError, DataError
from fmct.probes.dense import (
    DenseCase,
    LinearProbe,
    choose_cost,
    dense_probe,
    draw_tokens,
    encode_tokens,
    hu_statistics,
    mean_hu,
    score_features,
)
from fmct.windows import Window
from tests.probes.references_probe import auroc_by_pairs, token_table

SIZE, PATCH = (12, 12, 12), (4, 4, 4)
WINDOWS = (Window(-200, 200),)
TRAIN, TEST = [f"train{k}" for k in range(8)], [f"test{k}" for k in range(4)]


def case(patient: str, seed: int, *, texture: float = 30.0) -> DenseCase:
    """Return soft tissue of one mean with a lesion in one half that differs by its texture only."""
    random = np.random.default_rng(seed)
    mask = np.zeros((24, 20, 16), dtype=np.float32)
    mask[: 8 + seed % 9] = 1
    noise = random.normal(size=mask.shape)
    return DenseCase(patient, (40 + noise * (5 + texture * mask)).astype(np.float32), mask)


@pytest.fixture(scope="module")
def cases() -> list[DenseCase]:
    return [case(name, number) for number, name in enumerate([*TRAIN, *TEST])]


def spread(x: torch.Tensor) -> torch.Tensor:
    """An encoder: per token the mean and the deviation of its voxels, (B, N, 2)."""
    blocks = x[:, 0].unfold(1, 4, 4).unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).flatten(1, 3)
    return torch.stack([blocks.mean(-1), blocks.std(-1)], dim=-1)


def probe(encoder, cases, **settings):
    people = {"train_patients": TRAIN, "test_patients": TEST}
    return dense_probe(encoder, cases, windows=WINDOWS, size=SIZE, patch=PATCH, **{**people, **settings})


def test_a_feature_that_tells_is_found_and_noise_is_chance(cases: list[DenseCase]) -> None:
    assert probe(spread, cases).mean.estimate > 0.97
    noise = torch.Generator().manual_seed(0)
    blind = probe(lambda x: torch.randn(len(x), 27, 8, generator=noise), cases)
    assert blind.mean.estimate == pytest.approx(0.5, abs=0.08)


def test_statistics_see_texture_where_the_mean_does_not(cases: list[DenseCase]) -> None:
    tokens = draw_tokens(cases, size=SIZE, patch=PATCH)
    people = {"train_patients": TRAIN, "test_patients": TEST}
    assert score_features(hu_statistics(tokens), tokens, **people).mean.estimate > 0.97
    assert score_features(mean_hu(tokens), tokens, **people).mean.estimate < 0.65


def test_tokens_are_those_of_the_slow_table(cases: list[DenseCase]) -> None:
    fat = np.array(cases[0].hu)
    fat[:, :7] = -90.0
    soft = draw_tokens([replace(cases[0], hu=fat)], size=SIZE, patch=PATCH, positions=5)[TRAIN[0]]
    # The mask is found again through a scan whose values are the mask.
    shares = draw_tokens([replace(cases[0], hu=100 * cases[0].mask)], size=SIZE, patch=PATCH, positions=5)[TRAIN[0]]
    lesion, kept = [], []
    for window, mask in zip(soft.crops, shares.crops / 100, strict=True):
        table = token_table(window, mask, 4)
        judged = [-60 <= mean <= 150 and (share > 0.9 or share < 0.1) for mean, share in table]
        kept.append(judged)
        lesion += [share > 0.9 for (_, share), use in zip(table, judged, strict=True) if use]
    np.testing.assert_array_equal(soft.judged, np.array(kept))
    np.testing.assert_array_equal(soft.lesion, np.array(lesion))
    assert 0 < np.mean(lesion) < 1
    assert not all(map(all, kept))


def test_windows_are_uniform_inside_the_scan_and_the_same_for_every_encoder(cases: list[DenseCase]) -> None:
    ramp = np.arange(24 * 20 * 16, dtype=np.float32).reshape(24, 20, 16)
    tokens = draw_tokens([DenseCase("a", ramp, ramp * 0)], size=SIZE, patch=PATCH, positions=400)["a"]
    first = tokens.crops[:, 0, 0, 0].astype(int)
    starts = np.stack(np.unravel_index(first, ramp.shape), 1)
    for axis, room in enumerate((13, 9, 5)):
        counts = np.bincount(starts[:, axis], minlength=room)
        assert len(counts) == room
        assert counts.min() > 0.4 * 400 / room
    again = draw_tokens([DenseCase("a", ramp, ramp * 0)], size=SIZE, patch=PATCH, positions=400)["a"]
    np.testing.assert_array_equal(tokens.crops, again.crops)
    other = draw_tokens([DenseCase("a", ramp, ramp * 0)], size=SIZE, patch=PATCH, positions=400, seed=1)["a"]
    assert not np.array_equal(tokens.crops, other.crops)


def test_auroc_is_the_share_of_ordered_pairs(cases: list[DenseCase]) -> None:
    faint = [case(c.patient, number, texture=1.0) for number, c in enumerate(cases)]
    tokens = draw_tokens(faint, size=SIZE, patch=PATCH, positions=6)
    features = encode_tokens(spread, tokens, windows=WINDOWS)
    result = score_features(features, tokens, train_patients=TRAIN, test_patients=TEST, costs=(0.1,))
    x = np.concatenate([features[p] for p in TRAIN]).astype(np.float64)
    y = np.concatenate([tokens[p].lesion for p in TRAIN])
    fitted = LinearProbe.fit(x, y, 0.1)
    assert len(result.auroc) == 4
    assert min(result.auroc.values()) < 1
    for patient, value in result.auroc.items():
        assert value == pytest.approx(auroc_by_pairs(tokens[patient].lesion, fitted.decide(features[patient])))


def test_the_probe_is_the_balanced_logistic_optimum() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(300, 5)) * [1, 10, 0.1, 1, 1] + 3, random.random(300) < 0.2
    x[y, 1] += 8
    probe = LinearProbe.fit(x, y, 0.5)
    z = (x - x.mean(0)) / x.std(0)
    weight = np.where(y, 300 / (2 * y.sum()), 300 / (2 * (~y).sum()))
    target = np.where(y, 1.0, 0.0)
    # At the optimum Σ w (p − t) = 0 gives the intercept; then the gradient of ½‖β‖² + C Σ w · log-loss is zero.
    low, high = -20.0, 20.0
    for _ in range(200):
        middle = (low + high) / 2
        p = 1 / (1 + np.exp(-(z @ probe.weights + middle)))
        low, high = (middle, high) if (weight * (p - target)).sum() < 0 else (low, middle)
    p = 1 / (1 + np.exp(-(z @ probe.weights + low)))
    np.testing.assert_allclose(probe.weights + 0.5 * z.T @ (weight * (p - target)), 0, atol=2e-3)


def test_cost_is_chosen_on_whole_training_patients() -> None:
    random = np.random.default_rng(1)
    y = {f"p{k}": random.random(60) < 0.5 for k in range(9)}
    x = {p: random.normal(size=(60, 40)) for p in y}
    for p in y:
        x[p][:, 0] += 1.2 * y[p]
    chosen = choose_cost(x, y, (1e-4, 1e-2, 1.0))
    scores = {}
    for cost in (1e-4, 1e-2, 1.0):
        found = []
        for fold in range(3):
            held = [f"p{k}" for k in range(9) if k % 3 == fold]
            kept = [p for p in y if p not in held]
            fitted = LinearProbe.fit(np.concatenate([x[p] for p in kept]), np.concatenate([y[p] for p in kept]), cost)
            found += [roc_auc_score(y[p], fitted.decide(x[p])) for p in held]
        scores[cost] = np.mean(found)
    assert chosen == max(scores, key=lambda cost: scores[cost])
    assert choose_cost({"p0": x["p0"]}, {"p0": y["p0"]}, (1.0, 2.0, 3.0)) == 2.0


def test_patients_that_cannot_be_scored_are_named(cases: list[DenseCase]) -> None:
    small = DenseCase("small", np.zeros((8, 20, 20), np.float32), np.zeros((8, 20, 20), np.float32))
    healthy = replace(cases[-1], patient="healthy", mask=cases[-1].mask * 0)
    result = probe(spread, [*cases, small, healthy], test_patients=["small", "healthy", *TEST])
    assert set(result.auroc) == set(TEST)
    assert "large" in result.not_scored["small"]
    assert result.not_scored["healthy"].startswith("0 lesion")
    assert result.to_dict()["not_scored"] == result.not_scored


def test_two_series_of_a_patient_are_one_patient(cases: list[DenseCase]) -> None:
    twice = [*cases, replace(case("x", 99), patient=TEST[0])]
    result = probe(spread, twice)
    assert len(result.auroc) == 4
    assert sum(result.tokens[TEST[0]]) > 1.5 * sum(probe(spread, cases).tokens[TEST[0]])


def test_mistakes_are_explained(cases: list[DenseCase]) -> None:
    with pytest.raises(DataError, match="train0 in training and test"):
        probe(spread, cases, test_patients=["train0"])
    with pytest.raises(DataError, match="all background"):
        probe(spread, [replace(c, mask=c.mask * 0) for c in cases])
    with pytest.raises(DataError, match="patch tokens only"):
        probe(lambda x: torch.zeros(len(x), 28, 2), cases)
    with pytest.raises(DataError, match="not finite"):
        probe(lambda x: torch.full((len(x), 27, 2), torch.nan), cases)
    with pytest.raises(ConfigError, match="does not divide"):
        draw_tokens(cases, size=(10, 12, 12), patch=PATCH)
