"""Balanced draws: a fair coin for the class, with replacement, and nothing but (seed, finding, draw) decides them."""

from itertools import islice

import numpy as np
import pytest
import torch

from fmct.data.finding_batches import FindingData, Jitter, KeptRows, finding_batches
from fmct.errors import DataError
from fmct.randomness import generator

LABELS = np.array([[1, np.nan], [0, 1], [0, 0], [0, 0], [0, np.nan], [0, 1]], dtype=float)


def data(chosen: np.ndarray | None = None) -> FindingData:
    values = torch.arange(6.0)[:, None] * torch.ones(4)
    return FindingData({"cls": KeptRows(values)}, LABELS, [f"p/{n}" for n in range(6)], ["rare", "partly"], chosen)


def drawn(batches: object, count: int, number: int) -> torch.Tensor:
    return torch.cat([batch.inputs[number]["cls"][:, 0] for batch in islice(batches, count)])


def test_half_of_the_draws_have_the_finding_however_rare_it_is() -> None:
    batch = next(finding_batches(data(), seed=0, batch_size=2000))
    shares = batch.labels.float().mean(dim=1)
    assert abs(shares - 0.5).max() < 0.04
    rare = batch.inputs[0]["cls"][:, 0].long()
    counts = torch.bincount(rare, minlength=6) / 2000
    np.testing.assert_allclose(counts.numpy(), [0.5, 0.1, 0.1, 0.1, 0.1, 0.1], atol=0.04)


def test_a_series_without_a_label_is_never_drawn() -> None:
    batch = next(finding_batches(data(), seed=0, batch_size=500))
    assert set(batch.inputs[1]["cls"][:, 0].long().tolist()) == {1, 2, 3, 5}


def test_labels_are_those_of_the_series_drawn() -> None:
    batch = next(finding_batches(data(), seed=3, batch_size=64))
    for number in range(2):
        rows = batch.inputs[number]["cls"][:, 0].long().numpy()
        np.testing.assert_array_equal(batch.labels[number].numpy(), LABELS[rows, number])


def test_a_draw_depends_on_neither_batch_nor_rank_nor_start() -> None:
    whole = drawn(finding_batches(data(), seed=1, batch_size=24), 1, 0)
    resumed = drawn(finding_batches(data(), seed=1, batch_size=6, start_draw=12), 2, 0)
    torch.testing.assert_close(whole[12:], resumed)
    ranks = [drawn(finding_batches(data(), seed=1, batch_size=3, rank=r, world_size=2), 4, 0) for r in range(2)]
    joined = torch.stack([part.reshape(4, 3) for part in ranks], dim=1).flatten()
    torch.testing.assert_close(joined, whole)
    assert not torch.equal(drawn(finding_batches(data(), seed=2, batch_size=24), 1, 0), whole)


def test_chosen_series_alone_are_drawn_for_few_shots() -> None:
    chosen = np.zeros((6, 2), bool)
    chosen[[0, 3], 0] = chosen[[1, 2], 1] = True
    batch = next(finding_batches(data(chosen), seed=0, batch_size=100))
    assert [set(part["cls"][:, 0].long().tolist()) for part in batch.inputs] == [{0, 3}, {1, 2}]


def test_a_finding_without_positives_is_explained() -> None:
    chosen = np.ones((6, 2), bool)
    chosen[0, 0] = False
    with pytest.raises(DataError, match="rare: 0 series with it and 5 without"):
        next(finding_batches(data(chosen), seed=0, batch_size=2))


def test_jitter_flips_the_named_axes_and_shifts_all_values_alike() -> None:
    volume = torch.randn(3, 4, 5, 6)
    always = Jitter((0.0, 1.0, 1.0), 1.0, 0.1).apply(volume, generator(0, "x"))
    difference = always - volume.flip([2, 3])
    assert difference.std() < 1e-6
    assert 0 < difference.abs().max() <= 0.1
    torch.testing.assert_close(Jitter().apply(volume, generator(0, "x")), volume)
