"""Batches of slices: every slice once an epoch, the same for any rank; rotation and shift against scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from fmct.data.slice_batches import SliceBatch, SliceScans, SliceVariation, slice_batches, varied
from fmct.errors import ConfigError, DataError


def scans() -> SliceScans:
    """Return three scans of 4 slices of 8 × 8; pixel (0, 0) names the slice; one slice of the last is outside it."""
    arrays = [np.full((4, 8, 8), 10.0 * n, dtype=np.float32) + np.arange(4)[:, None, None] for n in range(3)]
    inside = [np.ones(4, bool), np.ones(4, bool), np.array([True, False, True, True])]
    return SliceScans(arrays, inside, np.array([0.0, 1.0, 1.0]), ["a/0", "b/1", "b/2"])


def taken(count: int, **options: int) -> list[SliceBatch]:
    batches = slice_batches(scans(), seed=2, **options)  # type: ignore[arg-type]
    return [next(batches) for _ in range(count)]


def test_an_epoch_is_every_slice_inside_its_scan_once() -> None:
    names = torch.cat([batch.slices[:, 0, 0] for batch in taken(22, batch_size=1)])
    every = {0, 1, 2, 3, 10, 11, 12, 13, 20, 22, 23}
    assert {int(n) for n in names[:11]} == every
    assert {int(n) for n in names[11:]} == every
    assert not torch.equal(names[:11], names[11:])
    for batch in taken(4, batch_size=3):
        for value, label, entry in zip(batch.slices[:, 0, 0], batch.labels, batch.entries, strict=True):
            number = int(value) // 10
            assert (float(label), entry) == ([0.0, 1.0, 1.0][number], ["a/0", "b/1", "b/2"][number])


def test_ranks_and_a_resume_see_the_same_draws() -> None:
    whole = taken(4, batch_size=4)
    by_rank = [taken(4, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    for number, batch in enumerate(whole):
        parts = torch.cat([ranks[number].slices for ranks in by_rank])
        torch.testing.assert_close(parts, batch.slices)
    torch.testing.assert_close(taken(1, batch_size=4, start_draw=12)[0].slices, whole[3].slices)


def test_variation_is_that_of_scipy() -> None:
    """Output pixel p is the input at middle + R (p − middle + shift), order 1, nearest outside."""
    image = np.random.default_rng(0).random((2, 20, 20)).astype(np.float32)
    changes = [(5.0, 0.1, -0.05), (-3.5, -0.02, 0.08)]
    found = varied(torch.from_numpy(image), changes).numpy()
    for number, (degrees, down, right) in enumerate(changes):
        angle = np.radians(degrees)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        middle, shift = np.array([9.5, 9.5]), np.array([down * 20, right * 20])
        offset = middle + turn @ (shift - middle)
        expected = ndimage.affine_transform(image[number], turn, offset, order=1, mode="nearest")
        np.testing.assert_allclose(found[number], expected, atol=2e-5)
    torch.testing.assert_close(varied(torch.from_numpy(image), [(0.0, 0.0, 0.0)] * 2), torch.from_numpy(image))


def test_variation_stays_within_its_limits_and_is_of_the_draw() -> None:
    variation = SliceVariation(5.0, 0.1)
    drawn = np.array([variation.drawn(3, draw) for draw in range(500)])
    assert np.abs(drawn[:, 0]).max() <= 5
    assert np.abs(drawn[:, 1:]).max() <= 0.1
    assert np.abs(drawn).max(axis=0) == pytest.approx([5, 0.1, 0.1], rel=0.05)
    assert variation.drawn(3, 77) == variation.drawn(3, 77) != variation.drawn(4, 77)
    with pytest.raises(ConfigError):
        SliceVariation(-1.0)


def test_one_class_alone_is_refused() -> None:
    both = scans()
    both.check_classes("train")
    alone = SliceScans(both.arrays[1:], both.inside[1:], both.labels[1:], both.ids[1:])
    with pytest.raises(DataError, match="2 scans with and 0 without"):
        alone.check_classes("train")
    assert both.patients == ["a", "b", "b"]
