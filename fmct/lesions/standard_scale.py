"""Nyúl's standard scale of a lesion detector: fitted to the training series alone, and kept with what it prepared."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fmct.artefacts import read_json, write_json
from fmct.errors import DataError
from fmct.lesions.conditioning import PreparationConfig, conditioned
from fmct.lesions.subjects import Subject
from fmct.normalise import fit_nyul, settings_from

FORMAT = ("fmct-lesion-normalisation", "1.0")
FILE = "normalisation.json"


def fitted_to(config: PreparationConfig, subjects: Sequence[Subject], *, sign: str) -> PreparationConfig:
    """Return the preparation with its standard scale fitted to these series' brains, where it has none yet.

    Any other preparation comes back as it is. Raises DataError without series, and as `prepare` does.
    """
    if config.normalisation.ready:
        return config
    if not subjects:
        raise DataError("normalisation: kind nyul is fitted to the training series, and the split has none.")
    return replace(config, normalisation=fit_nyul(_insides(config, subjects, sign), config.normalisation))


def keep(folder: Path, config: PreparationConfig) -> None:
    """Write the normalisation with what was fitted into the folder of prepared series."""
    write_json(folder / FILE, *FORMAT, {"normalisation": config.normalisation.to_dict()})


def kept(folder: Path, config: PreparationConfig) -> PreparationConfig:
    """Return the preparation with what was fitted when the folder's series were prepared, if anything was."""
    if config.normalisation.ready or not (folder / FILE).is_file():
        return config
    return replace(config, normalisation=settings_from(read_json(folder / FILE, *FORMAT)["normalisation"]))


def _insides(config: PreparationConfig, subjects: Sequence[Subject], sign: str) -> Iterator[np.ndarray]:
    for subject in subjects:
        source, where = subject.read(), f"series {subject.series}"
        found = conditioned(source.volume, config, sign=sign, brain=source.brain, where=where)
        yield config.normalisation.inside(found.volume.voxels, found.inside, where=where)
