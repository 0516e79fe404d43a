import math

import pytest

from fmct.errors import DataError
from fmct.metrics.rspect_loss import EXAM_WEIGHTS, IMAGE_WEIGHT, Exam, rspect_loss

NEGATIVE = Exam({**dict.fromkeys(EXAM_WEIGHTS, 0.0), "negative_exam_for_pe": 1.0}, [0, 0, 0, 0])
POSITIVE = Exam({**dict.fromkeys(EXAM_WEIGHTS, 0.0), "central_pe": 1.0, "rv_lv_ratio_gte_1": 1.0}, [0, 1, 1, 0])
HALF = Exam(dict.fromkeys(EXAM_WEIGHTS, 0.5), [0.5] * 4)


def test_m5_images_of_a_negative_exam_weigh_nothing() -> None:
    wrong = Exam(NEGATIVE.labels, [0.99] * 4)
    assert rspect_loss([wrong], [NEGATIVE]) == rspect_loss([NEGATIVE], [NEGATIVE])
    assert rspect_loss([Exam(POSITIVE.labels, [0.99] * 4)], [POSITIVE]) > 0.1


def test_m5_perfect_predictions_cost_nearly_nothing() -> None:
    assert rspect_loss([NEGATIVE, POSITIVE], [NEGATIVE, POSITIVE]) == pytest.approx(0, abs=1e-6)


def test_one_half_everywhere_costs_log_two() -> None:
    assert rspect_loss([HALF, HALF], [NEGATIVE, POSITIVE]) == pytest.approx(math.log(2))


def test_weights_are_the_published_ones() -> None:
    assert sum(EXAM_WEIGHTS.values()) == pytest.approx(1.0, abs=1e-6)
    one_wrong = Exam({**POSITIVE.labels, "central_pe": 0.5}, POSITIVE.images)
    expected = 0.1877300613 * math.log(2) / (1 + 4 * IMAGE_WEIGHT * 0.5)
    assert rspect_loss([one_wrong], [POSITIVE]) == pytest.approx(expected, abs=1e-6)


def test_missing_labels_and_images_are_explained() -> None:
    with pytest.raises(DataError, match="central_pe"):
        rspect_loss([Exam({k: 0.5 for k in EXAM_WEIGHTS if k != "central_pe"}, [0.5] * 4)], [POSITIVE])
    with pytest.raises(DataError, match="3 and 4 images"):
        rspect_loss([Exam(POSITIVE.labels, [0.5] * 3)], [POSITIVE])
    with pytest.raises(DataError, match="no exam"):
        rspect_loss([], [])
