"""Nyúl's standard scale, fitted to the training patients of a cohort and to nobody else."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fmct.data.cohort import Cohort
from fmct.normalise import fit_nyul
from fmct.preprocess import Preprocessing


def fit_to_training(preprocessing: Preprocessing, cohort: Cohort, *, split: str = "train") -> Preprocessing:
    """Return the preprocessing with its standard scale fitted to every series of a split, where it has none yet.

    Any other preprocessing comes back as it is. Raises DataError for a series that cannot be normalised.
    """
    if preprocessing.normalisation.ready:
        return preprocessing
    fitted = fit_nyul(_insides(preprocessing, cohort, split), preprocessing.normalisation)
    return replace(preprocessing, normalisation=fitted)


def _insides(preprocessing: Preprocessing, cohort: Cohort, split: str) -> Iterator[np.ndarray]:
    for sample in cohort.of(split):
        entry = sample.entry
        preprocessing.check_modality(entry.modality, f"series {entry.id}")
        shapes = [level.shape for level in entry.levels]
        values = preprocessing.curve_values(
            lambda level, entry=entry: cohort.store.read_level(entry, level), shapes, scale=entry.scale
        )
        yield preprocessing.normalisation.inside(values, where=f"series {entry.id}")
