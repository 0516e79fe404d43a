"""The contrast task: labels by series, unknown phases and times left out, against sums written out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fmct.data.labelled import LabelledBatch
from fmct.errors import ConfigError
from fmct.models.contrast import ContrastNetwork
from fmct.models.encoder import VisionTransformer
from fmct.tasks.contrast import LABELS, Contrast, ContrastConfig, phase_loss, time_loss
from tests.tasks.batches import batch as labelled_batch

NAN = math.nan


def test_a_phase_that_is_unknown_costs_nothing() -> None:
    logits = torch.randn(4, 4, requires_grad=True)
    labels = torch.tensor([[0, 1.0, 0, 0], [NAN] * 4, [0, 0, 0, 1.0], [NAN] * 4])
    term = phase_loss(logits, labels)
    shares = torch.softmax(logits.detach().double(), dim=1).numpy()
    assert float(term.count) == 2
    assert term.loss.item() == pytest.approx(-(np.log(shares[0, 1]) + np.log(shares[2, 3])) / 2, rel=1e-5)
    term.loss.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[[1, 3]], torch.zeros(2, 4))
    nothing = phase_loss(torch.zeros(2, 4), torch.full((2, 4), NAN))
    assert (float(nothing.loss), float(nothing.count)) == (0.0, 0.0)


def test_time_is_compared_in_its_logarithm_where_known() -> None:
    times = torch.tensor([0.5, 2.0, 0.1])
    term = time_loss(times, torch.tensor([30.0, NAN, 300.0]))
    wanted = [0.5 * (0.5 - math.log(2)) ** 2, (math.log(11) - 0.1) - 0.5]
    assert float(term.loss) == pytest.approx(sum(wanted) / 2, rel=1e-5)


def network() -> ContrastNetwork:
    torch.manual_seed(1)
    encoder = VisionTransformer(in_channels=1, patch_size=4, embed_dim=12, depth=1, num_heads=1)
    return ContrastNetwork(encoder, hidden=4, phase=True, seconds=True)


def batch(labels: list[list[float]], draws: list[int]) -> LabelledBatch:
    """Return a batch of 8³ windows with these labels of their series."""
    windows = labelled_batch([0.0] * len(draws), side=8, seed=2)
    return replace(windows, patient_labels=torch.tensor(labels), draws=torch.tensor(draws))


def test_tiles_of_a_series_are_one_case() -> None:
    """Two series of two tiles, whatever the patient: presence is the mean over series, not over tiles."""
    task = Contrast(network(), ContrastConfig(positive_weight=2.0, seconds=0.5), tiles=2).eval()
    rows = [[1, 0, 1, 0, 0, 30.0], [0, 1, 0, 0, 0, NAN]]
    given = batch([rows[0], rows[0], rows[1], rows[1]], [8, 9, 10, 11])
    output = task(given, {})
    bags = torch.tensor([0, 0, 1, 1])
    values = task.network(given.volumes, given.spacing, bags, num_bags=2).values.double()
    presence = (2.0 * torch.nn.functional.softplus(-values[0, 0]) + torch.nn.functional.softplus(values[1, 0])) / 2
    assert output.terms["contrast"].item() == pytest.approx(presence.item(), rel=1e-5)
    assert float(output.health["count/phase"]) == 2
    assert float(output.health["count/seconds"]) == 1
    total = sum(weight * output.terms[name] for name, weight in {"contrast": 1, "phase": 1, "seconds": 0.5}.items())
    assert output.loss.item() == pytest.approx(float(total), rel=1e-6)
    assert len(LABELS) == 6


def test_impossible_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="positive_weight"):
        ContrastConfig(positive_weight=0.0)
