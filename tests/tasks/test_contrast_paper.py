"""The published contrast task: a scan's probability, early stopping, and which weights are kept."""

import math

import numpy as np
import pytest
import torch

from fmct.data.slice_batches import SliceBatch
from fmct.errors import ArtefactError, CheckpointError, ConfigError
from fmct.models.slice_networks import SliceNetwork, SliceNetworkConfig, build_slice_network
from fmct.tasks.contrast_paper import (
    ContrastPaper,
    build_predictor,
    describe_network,
    scan_logit,
    scan_probability,
    trained_predictor,
)

NETWORK = SliceNetworkConfig("simple_cnn", filters=[2])
TEMPLATE = torch.arange(24, dtype=torch.int16).reshape(2, 3, 4)
ARCHITECTURE = describe_network(
    NETWORK,
    side=8,
    aggregate="mean",
    preparation={"any": "thing"},
    template={"name": "t.nii.gz", "sha256": "", "shape": [2, 3, 4], "affine": np.eye(4).tolist()},
)


def task(losses: list[float], **options: object) -> ContrastPaper:
    """Return a task whose validation losses are these, in turn."""
    given = iter(losses)

    def validate(_: SliceNetwork) -> float:
        return next(given)

    network = build_slice_network(NETWORK, side=8, seed=1)
    return ContrastPaper(network, TEMPLATE, validate=validate, epoch=1, **options)  # type: ignore[arg-type]


def step(of: ContrastPaper, value: float) -> None:
    """Make every weight this number, and say that an update was done."""
    with torch.no_grad():
        for parameter in of.network.parameters():
            parameter.fill_(value)
    of.after_update({})


def test_a_scan_is_the_mean_of_its_slices_in_any_order() -> None:
    """Acceptance 1: the mean, invariant to order; the other aggregator is the fraction with at least ½."""
    p = np.random.default_rng(0).random(66)
    assert scan_probability(p, "mean") == pytest.approx(p.mean(), abs=1e-15)
    assert scan_probability(p[::-1], "mean") == scan_probability(p, "mean")
    assert scan_probability(np.array([0.5, 0.49999, 0.9, 0.1]), "fraction") == 0.5
    with pytest.raises(ConfigError):
        scan_probability(p, "max")
    with pytest.raises(ConfigError):
        scan_probability(p[:0], "mean")


def test_logits_are_finite_and_turn_back_into_the_probability() -> None:
    for p in (0.0, 1e-9, 0.3, 0.5, 0.999999, 1.0):
        assert math.isfinite(scan_logit(p))
        assert 1 / (1 + math.exp(-scan_logit(p))) == pytest.approx(p, abs=1e-12)
    assert scan_logit(0.5) == 0


def test_the_loss_is_plain_cross_entropy_of_the_scans_label() -> None:
    training = task([])
    batch = SliceBatch(torch.rand(3, 8, 8), torch.tensor([1.0, 0, 1]), torch.tensor([0, 1, 2]), ["a/1", "b/2", "a/1"])
    output = training(batch, {})
    p = training.network(batch.slices, batch.draws).sigmoid().detach()
    training.network.train()
    expected = -(batch.labels * p.log() + (1 - batch.labels) * (1 - p).log()).mean()
    assert float(output.loss.detach()) == pytest.approx(float(expected), abs=1e-6)
    assert output.samples == ["a/1", "b/2", "a/1"]


def test_the_best_weights_are_kept_and_patience_ends_the_run() -> None:
    training = task([0.9, 0.5, 0.7, 0.5, 0.6], patience=3)
    for number in range(5):
        assert not training.finished
        step(training, float(number))
    assert training.finished
    assert (training.best_step, training.best_loss) == (2, 0.5)
    assert {float(p.detach().mean()) for p in training.chosen.parameters()} == {
        1.0
    }  # of the second update; equals do not win
    assert {float(p.detach().mean()) for p in training.network.parameters()} == {4.0}
    predictor, _ = trained_predictor(ARCHITECTURE, training.state_dict(), in_channels=1, spacing_mm=(3, 1, 1))
    assert {float(p.detach().mean()) for p in predictor.parameters()} == {1.0}
    assert torch.equal(predictor.get_buffer("template"), TEMPLATE)


def test_legacy_keeps_the_last_weights_and_patience_of_zero_never_ends() -> None:
    """A-D15."""
    training = task([0.1, 0.9, 0.9], keep="last", patience=0)
    for number in range(3):
        step(training, float(number))
    assert not training.finished
    assert training.chosen is training.network
    predictor, _ = trained_predictor(ARCHITECTURE, training.state_dict(), in_channels=1, spacing_mm=(3, 1, 1))
    assert {float(p.detach().mean()) for p in predictor.parameters()} == {2.0}


def test_only_the_network_learns() -> None:
    training = task([])
    assert all(name.startswith("network.") for name, p in training.named_parameters() if p.requires_grad)


def test_run_state_comes_back() -> None:
    first, second = task([0.9, 0.8, 0.85, 0.84], patience=2), task([0.84], patience=2)
    for number in range(3):
        step(first, float(number))
    second.load_state_dict(first.state_dict())
    second.load_run_state(first.run_state())
    assert not second.finished
    step(second, 3.0)
    step(first, 3.0)
    assert first.finished
    assert second.finished
    assert second.run_state() == first.run_state()
    with pytest.raises(CheckpointError, match="another task"):
        second.load_run_state({"best": []})


def test_the_predictor_takes_whole_scans() -> None:
    predictor = build_predictor(ARCHITECTURE, in_channels=1, spacing_mm=(3, 1, 1))
    slices = torch.rand(2, 1, 5, 8, 8)
    with torch.no_grad():
        logits = predictor(slices).logits
        p = predictor.network(slices[1, 0]).sigmoid()  # type: ignore[operator]
    assert logits.shape == (2, 1)
    assert float(logits[1, 0].sigmoid()) == pytest.approx(float(p.mean()), abs=1e-6)


def test_parameters_of_another_network_are_refused() -> None:
    state = task([]).state_dict()
    with pytest.raises(ArtefactError, match="do not fit"):
        trained_predictor({**ARCHITECTURE, "side": 16}, state, in_channels=1, spacing_mm=(3, 1, 1))
    with pytest.raises(ArtefactError, match="aggregate"):
        build_predictor({**ARCHITECTURE, "aggregate": "max"}, in_channels=1, spacing_mm=(3, 1, 1))
