"""Batches of patches around lesions and around what is none: the ratio is exact, and no negative comes twice too soon.

Draw d of a run is the k-th positive or the k-th negative of a fixed cycle; the k-th one is place k of an order that is
drawn anew each time the pool is exhausted. What a draw shows depends on (seed, draw) and the pool only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fmct import randomness
from fmct.data.patches import cut
from fmct.errors import ConfigError, DataError
from fmct.shapes import Triple


@dataclass(frozen=True)
class Item:
    """A place to cut a patch: the series, the voxel (z, y, x) at its centre, and whether a lesion is meant."""

    series: str
    centre: Triple
    positive: bool


@dataclass(frozen=True)
class Arrays:
    """What patches are cut from: channels (C, D, H, W) float32, of which the first is the image, and lesions bool."""

    channels: np.ndarray
    lesions: np.ndarray
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Augmentation:
    """What is done to image, symmetry map and mask together, noise apart, which is the image's alone.

    flip: probability along each axis (z, y, x). shift: voxels by which the centre moves at most, a true translation.
    noise: standard deviation on the image, times a random share.
    """

    flip: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    shift: list[int] = field(default_factory=lambda: [4, 4, 4])
    noise: float = 0.02

    def __post_init__(self) -> None:
        if len(self.flip) != 3 or not all(0 <= p <= 1 for p in self.flip):
            raise ConfigError(f"augmentation.flip: three probabilities (z, y, x); got {self.flip}.")
        if len(self.shift) != 3 or min(self.shift) < 0 or self.noise < 0:
            raise ConfigError("augmentation: shift is three numbers of voxels, noise not negative.")


NO_AUGMENTATION = Augmentation([0.0, 0.0, 0.0], [0, 0, 0], 0.0)


@dataclass(frozen=True)
class PatchBatch:
    """B patches. volumes (B, C, d, h, w); mask (B, 1, d, h, w) in 0, 1; positive (B,) float: a lesion voxel is inside;
    wanted (B,) float: what the item was drawn as; spacing (B, 3) mm; draws (B,) int64; entries: series.
    """

    volumes: torch.Tensor
    mask: torch.Tensor
    positive: torch.Tensor
    wanted: torch.Tensor
    spacing: torch.Tensor
    draws: torch.Tensor
    entries: list[str]


class PatchSampler:
    """Which item a draw is: `negatives` negatives follow each positive.

    hard: negatives that were mined; a share `hard_share` of the negative places is theirs while there are any.
    Raises DataError, naming `subjects`, when there are no positives or no negatives.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        seed: int,
        negatives: int = 1,
        hard: Sequence[Item] = (),
        hard_share: float = 0.5,
        subjects: Sequence[str] = (),
    ) -> None:
        self.pools = {
            "positive": [item for item in items if item.positive],
            "negative": [item for item in items if not item.positive],
            "hard": list(hard),
        }
        self.seed, self.negatives, self.hard_share = seed, negatives, hard_share
        if negatives < 1 or not 0 <= hard_share <= 1:
            raise ConfigError("sampling: at least one negative a positive, and a hard_share from 0 to 1.")
        for kind in ("positive", "negative"):
            if not self.pools[kind]:
                named = ", ".join(list(dict.fromkeys(subjects or [item.series for item in items]))[:12]) or "none"
                advice = "with lesions, or check that the masks are theirs" if kind == "positive" else "free of lesions"
                raise DataError(
                    f"the training set has no {kind} patch, so that nothing can be told apart. Its subjects: {named}. "
                    f"Add subjects {advice}."
                )

    def item(self, draw: int) -> Item:
        """Return the item of a draw."""
        cycle, place = divmod(draw, 1 + self.negatives)
        if place == 0:
            return self._nth("positive", cycle)
        number = cycle * self.negatives + place - 1
        if not self.pools["hard"] or not self.hard_share:
            return self._nth("negative", number)
        before, after = int(number * self.hard_share), int((number + 1) * self.hard_share)
        return self._nth("hard", before) if after > before else self._nth("negative", number - before)

    def _nth(self, kind: str, number: int) -> Item:
        pool = self.pools[kind]
        epoch, place = divmod(number, len(pool))
        return pool[int(randomness.permutation(len(pool), self.seed, "patches", kind, epoch)[place])]


def patch_of(
    arrays: Arrays, item: Item, size: Triple, augmentation: Augmentation, *, seed: int, draw: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (channels (C, d, h, w), lesions bool (d, h, w)) of an item, augmented by (seed, draw)."""
    random = randomness.generator(seed, "augmentation", draw)
    shift = [int(random.integers(-s, s + 1)) for s in augmentation.shift]
    centre = [c + s for c, s in zip(item.centre, shift, strict=True)]
    channels, lesions = cut(arrays.channels, centre, size), cut(arrays.lesions, centre, size, fill=False)
    axes = tuple(axis for axis, p in enumerate(augmentation.flip) if random.random() < p)
    channels, lesions = np.flip(channels, tuple(a + 1 for a in axes)).copy(), np.flip(lesions, axes).copy()
    if augmentation.noise:
        channels[0] += random.normal(0, augmentation.noise * random.random(), lesions.shape).astype(np.float32)
    return channels, lesions


def patch_batches(
    sampler: Callable[[int], PatchSampler],
    arrays: Callable[[str], Arrays],
    size: Triple,
    augmentation: Augmentation,
    *,
    seed: int,
    batch_size: int,
    start_draw: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[PatchBatch]:
    """Yield batches from `start_draw` on, without end. sampler(draw): the one that a draw belongs to (mining adds)."""
    draw = start_draw
    while True:
        draws = list(range(draw, draw + batch_size))
        now = sampler(draw)
        items = [now.item(d) for d in draws]
        yield collate(
            items,
            [
                patch_of(arrays(item.series), item, size, augmentation, seed=seed, draw=d)
                for d, item in zip(draws, items, strict=True)
            ],
            [arrays(item.series).spacing_mm for item in items],
            draws,
            device,
        )
        draw += batch_size


def collate(
    items: Sequence[Item],
    patches: Sequence[tuple[np.ndarray, np.ndarray]],
    spacing_mm: Sequence[Sequence[float]],
    draws: Sequence[int],
    device: torch.device | str,
) -> PatchBatch:
    """Return patches as one batch on a device."""
    mask = torch.from_numpy(np.stack([lesions for _, lesions in patches])).to(device)[:, None].float()
    return PatchBatch(
        volumes=torch.from_numpy(np.stack([channels for channels, _ in patches])).to(device),
        mask=mask,
        positive=(mask.amax((1, 2, 3, 4)) > 0).float(),
        wanted=torch.tensor([float(item.positive) for item in items], device=device),
        spacing=torch.tensor([list(s) for s in spacing_mm], dtype=torch.float32, device=device),
        draws=torch.tensor(list(draws), dtype=torch.int64),
        entries=[item.series for item in items],
    )


def folds_of(patients: Sequence[str], folds: int, *, seed: int) -> dict[str, int]:
    """Return {patient: fold number}, folds of equal size to within one, by patient and the seed alone.

    Raises ConfigError for fewer patients than folds.
    """
    names = sorted(set(patients))
    if not 2 <= folds <= len(names):
        raise ConfigError(f"folds: {folds} folds of {len(names)} patients; expected at least 2 and a patient each.")
    order = randomness.permutation(len(names), seed, "folds").tolist()
    return {names[number]: place % folds for place, number in enumerate(order)}
