"""The prepared series of a run: files in its folder, and those read lately in memory."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fmct.config import plain
from fmct.data.lesion_patches import Arrays
from fmct.data.mask_files import mask_on_grid
from fmct.lesions.preparation import PreparationConfig, Prepared, load_prepared, prepare, save_prepared, spacing_of
from fmct.lesions.stages import digest
from fmct.lesions.subjects import Subject

_KEPT = 64  # series in memory


class PreparedSeries:
    """Series as the networks see them. config: how they are prepared; a file is known by it and by its content."""

    def __init__(self, folder: Path, subjects: Sequence[Subject], config: PreparationConfig, *, sign: str) -> None:
        self.folder, self.subjects, self.config, self.sign = folder, list(subjects), config, sign
        self._recent: OrderedDict[str, Prepared] = OrderedDict()

    def make(self) -> None:
        """Prepare the series that are not there yet, and drop what no subject needs."""
        for subject in self.subjects:
            if not self.file(subject).is_file():
                source = subject.read()
                found = prepare(
                    source.volume, self.config, sign=self.sign, brain=source.brain, lesions=source.lesions,
                    where=f"series {subject.series}",
                )  # fmt: skip
                save_prepared(self.file(subject), found)
        wanted = {self.file(subject).name for subject in self.subjects}
        for path in self.folder.glob("*.npz"):
            if path.name not in wanted:
                path.unlink()

    def file(self, subject: Subject) -> Path:
        """Return the file of a series."""
        made = digest([subject.key, plain(self.config), self.sign])
        return self.folder / f"{subject.series}-{made}.npz"

    def of(self, subject: Subject) -> Prepared:
        """Return a series."""
        if subject.series not in self._recent:
            self._recent[subject.series] = load_prepared(self.file(subject))
            while len(self._recent) > _KEPT:
                self._recent.popitem(last=False)
        self._recent.move_to_end(subject.series)
        return self._recent[subject.series]

    def arrays(self, series: str) -> Arrays:
        """Return what patches of a series are cut from."""
        return self.of(next(subject for subject in self.subjects if subject.series == series)).arrays

    def doubtful(self, subject: Subject) -> np.ndarray | None:
        """Return the regions of a series that count neither way, bool on its prepared grid, or None."""
        region = subject.ignored()
        if region is None:
            return None
        found = self.of(subject)
        return mask_on_grid(region, found.brain.shape, found.affine) > 0

    def sides(self, subjects: Sequence[Subject]) -> list[list[float]]:
        """Return the smallest and the largest voxel sides (z, y, x) in mm of some series, [] of none."""
        sides = np.array([spacing_of(self.file(subject)) for subject in subjects])
        return [sides.min(axis=0).tolist(), sides.max(axis=0).tolist()] if subjects else []
