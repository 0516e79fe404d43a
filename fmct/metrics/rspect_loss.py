"""The weighted log loss of the RSNA-STR 2020 challenge on pulmonary embolism (RSPECT), from exam and image labels.

Its weights are the challenge's published ones. An exam's image weight is multiplied by the exam's share of positive
images, so the images of a negative exam cost nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fmct.errors import DataError

EXAM_WEIGHTS: Mapping[str, float] = {
    "negative_exam_for_pe": 0.0736196319,
    "indeterminate": 0.09202453988,
    "chronic_pe": 0.1042944785,
    "acute_and_chronic_pe": 0.1042944785,
    "central_pe": 0.1877300613,
    "leftsided_pe": 0.06257668712,
    "rightsided_pe": 0.06257668712,
    "rv_lv_ratio_gte_1": 0.2346625767,
    "rv_lv_ratio_lt_1": 0.0782208589,
}
IMAGE_WEIGHT = 0.07361963
CLIP = 1e-7  # a certain mistake costs much, not everything


@dataclass(frozen=True)
class Exam:
    """One exam: labels 0 or 1 by name of EXAM_WEIGHTS, and of each image, or the probabilities of the same."""

    labels: Mapping[str, float]
    images: Sequence[float]


def rspect_loss(predicted: Sequence[Exam], truth: Sequence[Exam]) -> float:
    """Return Σ weight · log loss / Σ weight over all exams' labels and images.

    Raises DataError when a label is missing or exams differ in their numbers of images.
    """
    total = weight = 0.0
    for number, (guess, exam) in enumerate(zip(predicted, truth, strict=True), start=1):
        missing = sorted(set(EXAM_WEIGHTS) - (set(guess.labels) & set(exam.labels)))
        if missing or len(guess.images) != len(exam.images) or not exam.images:
            raise DataError(
                f"exam {number}: expected {', '.join(missing) or 'as many predicted images as labelled ones'}; got "
                f"{len(guess.images)} and {len(exam.images)} images."
            )
        for name, share in EXAM_WEIGHTS.items():
            total += share * float(_log_loss([guess.labels[name]], [exam.labels[name]])[0])
            weight += share
        share = IMAGE_WEIGHT * float(np.mean(exam.images))
        total += share * float(_log_loss(guess.images, exam.images).sum())
        weight += share * len(exam.images)
    if not weight:
        raise DataError("RSPECT loss: no exam to score.")
    return total / weight


def _log_loss(predicted: Sequence[float], labels: Sequence[float]) -> np.ndarray:
    p, y = np.clip(np.asarray(predicted, dtype=np.float64), CLIP, 1 - CLIP), np.asarray(labels, dtype=np.float64)
    return -(y * np.log(p) + (1 - y) * np.log1p(-p))
