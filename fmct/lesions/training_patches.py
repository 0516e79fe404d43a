"""Whose patches the networks learn from: lesions, tiles, the detector's false candidates; and how often each."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fmct.artefacts import read_json, write_json
from fmct.data.lesion_patches import Item, PatchSampler
from fmct.errors import DataError
from fmct.lesions.candidates import Candidate
from fmct.lesions.items import (
    candidate_items,
    hard_items,
    items_of_tree,
    items_tree,
    lesion_items,
    tile_items,
    without_doubt,
)
from fmct.lesions.phase import patch_size
from fmct.lesions.prepared_series import PreparedSeries
from fmct.lesions.settings import DiscriminateConfig, ProposeConfig
from fmct.lesions.subjects import Subject, of_split
from fmct.shapes import Triple

ITEMS = ("fmct-lesion-items", "1.0")
Found = tuple[np.ndarray, Sequence[Candidate]]
Sampler = Callable[[int], PatchSampler]


class TrainingPatches:
    """The patches of the training series. Negatives never show a region that counts neither way.

    Raises DataError for a split without series, and for a series whose lesions are not known.
    """

    def __init__(self, series: PreparedSeries, split: str, *, seed: int) -> None:
        self.series, self.seed = series, seed
        self.subjects = of_split(series.subjects, split)
        if not self.subjects:
            splits = ", ".join(sorted({subject.split for subject in series.subjects})) or "none"
            raise DataError(f"no series in the split {split!r}; splits with some: {splits}.")
        unknown = [subject.series for subject in self.subjects if not series.of(subject).known]
        if unknown:
            raise DataError(
                f"training series without a mask of lesions: {', '.join(unknown[:8])}. Whether a voxel is one is then "
                "not known: give an empty mask where there is none, or leave them out of the split."
            )

    def for_detector(self, config: ProposeConfig, mined: Callable[[int], list[Item]]) -> Sampler:
        """Return sampler(draw). mined(round): the hard negatives of a round, asked for when its first draw is."""
        items: list[Item] = []
        tiles_alone = config.positives == "tiles"
        if not tiles_alone:
            items += [item for s in self.subjects for item in lesion_items(s.series, self.series.of(s))]
        items += self._tiles(patch_size(config.training), positives=tiles_alone)
        every = max(1, config.training.steps // (config.mining + 1)) * config.training.batch_size
        made: dict[int, PatchSampler] = {}

        def sampler(draw: int) -> PatchSampler:
            """Return the sampler of a draw's round."""
            number = min(draw // every, config.mining)
            if number not in made:
                hard = mined(number) if number else []
                made[number] = self._sampler(items, hard, config.training.negatives, config.hard_share)
            return made[number]

        sampler(0)  # an unusable training set is refused before anything is trained
        return sampler

    def mine(self, path: Path, number: int, find: Callable[[Subject], Found], config: ProposeConfig) -> list[Item]:
        """Return a round's hard negatives: of its file, else of what `find` finds now, the highest scores first."""
        if path.is_file():
            return items_of_tree(read_json(path, *ITEMS)["items"])
        found: list[Item] = []
        for subject in self.subjects:
            hard = hard_items(subject.series, self.series.of(subject), *find(subject))
            found += self._sure(subject, hard, patch_size(config.training))[: config.mined]
        write_json(path, *ITEMS, {"round": number, "items": items_tree(found)})
        return found

    def for_judges(self, config: DiscriminateConfig, found: Callable[[Subject], Found]) -> tuple[Sampler, Sampler]:
        """Return the samplers of the teacher and of the student. found(subject): the detector's candidates of a series.

        Tissue free of lesions stands beside the false candidates, and for them where the detector makes none.
        """
        size = patch_size(config.student_training)
        own: list[Item] = []
        for subject in self.subjects:
            items = candidate_items(subject.series, self.series.of(subject), *found(subject))
            own += self._sure(subject, items, size)
        tiles = self._tiles(size, positives=True)
        false = [item for item in own if not item.positive]
        mixed = [item for item in tiles if not item.positive] + [item for item in own if item.positive]
        student = self._sampler(mixed, false, config.student_training.negatives, config.hard_share)
        teacher = student
        if config.teacher_items == "tiles" and config.distil.listens:
            teacher = self._sampler(tiles, [], config.teacher_training.negatives, config.hard_share)
        return (lambda draw: teacher), (lambda draw: student)

    def _tiles(self, size: Triple, *, positives: bool) -> list[Item]:
        found: list[Item] = []
        for subject in self.subjects:
            tiles = tile_items(subject.series, self.series.of(subject), size, positives=positives)
            found += self._sure(subject, tiles, size)
        return found

    def _sure(self, subject: Subject, items: Sequence[Item], size: Triple) -> list[Item]:
        return without_doubt(items, self.series.doubtful(subject), size)

    def _sampler(self, items: Sequence[Item], hard: Sequence[Item], negatives: int, hard_share: float) -> PatchSampler:
        return PatchSampler(
            items, seed=self.seed, negatives=negatives, hard=hard, hard_share=hard_share,
            subjects=[subject.series for subject in self.subjects],
        )  # fmt: skip
