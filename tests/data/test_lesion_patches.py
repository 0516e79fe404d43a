"""B.13, 15 to 19: tiles, centred crops, augmentation, the ratio, and patients apart."""

from itertools import product

import numpy as np
import pytest

from fmct.data.lesion_patches import Arrays, Augmentation, Item, PatchSampler, folds_of, patch_batches, patch_of
from fmct.data.patches import Assembly, cut, tile_starts, tiles
from fmct.errors import ConfigError, DataError


@pytest.mark.parametrize(("shape", "overlap"), [((5, 8, 11), 0.0), ((8, 8, 8), 0.0), ((19, 8, 16), 0.4)])
def test_tiles_cover_every_voxel_and_reassemble(shape: tuple[int, int, int], overlap: float) -> None:
    """B.13, 15: volumes smaller than, equal to, and not divisible by the patch."""
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    starts = tile_starts(shape, (8, 8, 8), overlap=overlap)
    whole = Assembly(shape)
    for start, tile in zip(starts, tiles(values, starts, (8, 8, 8)), strict=True):
        assert all(a + 8 <= max(n, 8) for a, n in zip(start, shape, strict=True))
        whole.add(tile, start)
    np.testing.assert_allclose(whole.result(), values, rtol=1e-6)
    short = Assembly((9, 8, 8))
    short.add(np.zeros((8, 8, 8)), (0, 0, 0))
    with pytest.raises(ValueError, match="in no tile"):
        short.result()


def test_candidates_are_centred_at_every_face_and_corner() -> None:
    """B.13, 16 and B-D14: also at the border, with padding on the side where the volume ends."""
    shape = (6, 7, 8)
    corners = list(product(*((0, n - 1) for n in shape)))
    faces = [tuple(n // 2 if a != axis else edge * (shape[a] - 1) for a, n in enumerate(shape))
             for axis in range(3) for edge in (0, 1)]  # fmt: skip
    for place in [*corners, *faces]:
        values = np.zeros((2, *shape), dtype=np.float32)
        values[:, *place] = 1
        patch = cut(values, place, (5, 5, 5))
        assert np.argwhere(patch[0]).tolist() == [[2, 2, 2]]
        slow = np.pad(values, [(0, 0), *((5, 5),) * 3])[:, *(slice(p + 5 - 2, p + 5 + 3) for p in place)]
        np.testing.assert_array_equal(patch, slow)
    assert not cut(values, (40, 40, 40), (5, 5, 5)).any()


def marked() -> Arrays:
    lesions = np.zeros((20, 20, 20), dtype=bool)
    lesions[9:12, 8:11, 10:13] = True
    lesions[9, 8, 13] = True  # no symmetry that a flip could hide in
    return Arrays(np.stack([lesions, 2 * lesions]).astype(np.float32), lesions, (1.0, 1.0, 1.0))


def test_image_symmetry_map_and_mask_move_together() -> None:
    """B.13, 17 and B-D13: after any augmentation; and a shift is a translation, nothing wraps round."""
    arrays, item = marked(), Item("s", (10, 9, 11), True)
    plain, _ = patch_of(arrays, item, (16, 16, 16), Augmentation([0, 0, 0], [0, 0, 0], 0.0), seed=0, draw=0)
    seen = set()
    for draw in range(30):
        channels, lesions = patch_of(arrays, item, (16, 16, 16), Augmentation(noise=0.0), seed=0, draw=draw)
        np.testing.assert_array_equal(channels[0], lesions)
        np.testing.assert_array_equal(channels[1], 2 * channels[0])
        assert channels.sum() == plain.sum()
        seen.add(channels.tobytes())
    assert len(seen) > 20
    edge = Item("s", (0, 0, 0), True)
    moved, _ = patch_of(arrays, edge, (12, 12, 12), Augmentation([0, 0, 0], [5, 5, 5], 0.0), seed=0, draw=1)
    assert not moved[:, :1].any()  # beyond the volume there is nothing, wherever the centre went
    noisy, lesions = patch_of(arrays, item, (16, 16, 16), Augmentation(noise=1.0), seed=0, draw=3)
    np.testing.assert_array_equal(noisy[1], 2 * lesions)  # noise is the image's


def items(positives: int, negatives: int) -> list[Item]:
    every = [Item(f"p{n}", (n, 0, 0), True) for n in range(positives)]
    return every + [Item(f"n{n}", (n, 0, 0), False) for n in range(negatives)]


@pytest.mark.parametrize("ratio", [1, 3])
def test_the_ratio_holds_and_no_negative_returns_before_all_were_seen(ratio: int) -> None:
    """B.13, 18."""
    sampler = PatchSampler(items(3, 7), seed=4, negatives=ratio)
    drawn = [sampler.item(draw) for draw in range(7 * (1 + ratio))]
    assert sum(item.positive for item in drawn) * ratio == sum(not item.positive for item in drawn)
    negatives = [item.series for item in drawn if not item.positive]
    assert all(len(set(negatives[k : k + 7])) == 7 for k in range(0, len(negatives) - 6, 7))
    assert [item.series for item in drawn[: 2 * (1 + ratio)]] != [item.series for item in drawn[-2 * (1 + ratio) :]]
    assert PatchSampler(items(3, 7), seed=4, negatives=ratio).item(11) == sampler.item(11)


def test_mined_negatives_take_their_share() -> None:
    hard = [Item("hard", (n, 0, 0), False) for n in range(4)]
    sampler = PatchSampler(items(3, 7), seed=0, hard=hard, hard_share=0.25)
    names = [sampler.item(draw).series for draw in range(1, 81, 2)]
    assert names.count("hard") == 10
    assert PatchSampler(items(3, 7), seed=0, hard=hard, hard_share=1.0).item(1).series == "hard"


@pytest.mark.parametrize(("given", "missing"), [((0, 4), "positive"), ((4, 0), "negative")])
def test_one_class_is_refused_by_name(given: tuple[int, int], missing: str) -> None:
    """B.13, 18 and the bad-input row: a training set of one class."""
    with pytest.raises(DataError, match=f"no {missing} patch.*Ann, Ben"):
        PatchSampler(items(*given), seed=0, subjects=["Ann", "Ben", "Ann"])


def test_batches_are_functions_of_the_draw() -> None:
    def batches(start: int) -> list[tuple[list[int], float]]:
        found = patch_batches(
            lambda draw: PatchSampler([Item("s", (10, 9, 11), True), Item("s", (2, 2, 2), False)], seed=1),
            lambda series: marked(), (8, 8, 8), Augmentation(), seed=1, batch_size=2, start_draw=start,
        )  # fmt: skip
        return [(b.draws.tolist(), float(b.volumes.sum())) for b, _ in zip(found, range(3), strict=False)]

    assert batches(0)[1:] == batches(2)[:2]
    first = next(iter(patch_batches(
        lambda draw: PatchSampler([Item("s", (10, 9, 11), True), Item("s", (2, 2, 2), False)], seed=1),
        lambda series: marked(), (8, 8, 8), Augmentation([0, 0, 0], [0, 0, 0], 0), seed=1, batch_size=2)))  # fmt: skip
    assert (first.wanted.tolist(), first.positive.tolist(), first.mask.shape) == ([1, 0], [1, 0], (2, 1, 8, 8, 8))


def test_folds_are_of_patients_and_stable() -> None:
    """B.13, 19: the same patient is in one fold, whatever the order or number of its series."""
    names = [f"P{n}" for n in range(13)]
    folds = folds_of(names + names[:5], 5, seed=0)
    assert folds == folds_of(names[::-1], 5, seed=0)
    sizes = [list(folds.values()).count(k) for k in range(5)]
    assert sorted(sizes) == [2, 2, 3, 3, 3]
    assert folds != folds_of(names, 5, seed=1)
    with pytest.raises(ConfigError, match="folds"):
        folds_of(names[:3], 5, seed=0)
