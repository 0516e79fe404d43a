"""B.13, 6 and 7: voxel weights, soft Dice; and features that are imitated."""

import pytest
import torch

from fmct.errors import ConfigError
from fmct.losses.lesions import dice_loss, feature_loss, lesion_weights, weighted_cross_entropy

LOGITS = torch.linspace(-3, 3, 24, dtype=torch.float64).view(1, 1, 2, 3, 4)
TARGET = (torch.arange(24) % 5 == 0).double().view_as(LOGITS)
PLAIN = torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, TARGET)


def test_constant_weights_change_nothing_and_weight_on_errors_raises_the_loss() -> None:
    """B.13, 6: normalised mode; weight moved onto wrongly classified voxels raises the loss."""
    for constant in (0.3, 7.0):
        flat = weighted_cross_entropy(LOGITS, TARGET, torch.full_like(LOGITS, constant))
        torch.testing.assert_close(flat, PLAIN)
    wrong = ((LOGITS > 0) != (TARGET > 0)).double()
    assert weighted_cross_entropy(LOGITS, TARGET, 1 + 5 * wrong) > PLAIN
    assert weighted_cross_entropy(LOGITS, TARGET, 1 + 5 * (1 - wrong)) < PLAIN
    assert weighted_cross_entropy(LOGITS, TARGET, torch.zeros_like(LOGITS)) == 0


def test_the_published_weighting_has_no_place() -> None:
    """B.13, 6 and B-D1: legacy mode is mean(CE) times mean(w), wherever the weight lies."""
    weights = torch.rand(LOGITS.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    legacy = weighted_cross_entropy(LOGITS, TARGET, weights, weighting="legacy_global")
    torch.testing.assert_close(legacy, PLAIN * weights.mean())
    torch.testing.assert_close(
        legacy, weighted_cross_entropy(LOGITS, TARGET, weights.flip(4), weighting="legacy_global")
    )
    with pytest.raises(ConfigError, match="ce_weighting"):
        weighted_cross_entropy(LOGITS, TARGET, weights, weighting="global")


def test_one_hot_class_weights_of_the_published_code_are_a_constant() -> None:
    """B-D2: a one-hot of 100 weighs positives and negatives alike there: a factor 50 over two columns."""
    truth = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    both = torch.stack([1 - truth, truth], dim=1)
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, both)
    torch.testing.assert_close(weighted_cross_entropy(logits, both, 100 * both, weighting="legacy_global"), 50 * plain)


def test_dice_at_its_ends_and_its_gradient() -> None:
    """B.13, 7: perfect, disjoint, empty; soft, with a gradient on a wrong prediction."""
    mask = torch.zeros(1, 1, 8, 8, 8)
    mask[..., 2:5, 2:5, 2:5] = 1
    sure = torch.where(mask > 0, 40.0, -40.0)
    assert dice_loss(sure, mask) < 1e-6
    assert dice_loss(-sure, mask) > 0.99
    assert dice_loss(torch.full_like(mask, -40.0), torch.zeros_like(mask)) < 1e-6
    logits = torch.full_like(mask, -1.0, requires_grad=True)
    dice_loss(logits, mask).backward()
    assert logits.grad is not None
    assert (logits.grad[mask > 0] < 0).all()
    assert (logits.grad[mask == 0] > 0).all()


def test_dice_is_finite_in_half_precision() -> None:
    """B.13, 7: 48³ x 8."""
    logits = torch.full((8, 1, 48, 48, 48), 20.0, dtype=torch.float16)
    assert torch.isfinite(dice_loss(logits, torch.zeros(1, dtype=torch.float16).expand_as(logits)))


def test_weights_are_a_gaussian_of_the_mask_above_one() -> None:
    mask = torch.zeros(1, 1, 15, 15, 15)
    mask[0, 0, 7, 7, 7] = 1
    weights = lesion_weights(mask, factor=10.0, sigma_voxels=1.2)
    x = torch.arange(-5, 6).double()
    kernel = torch.exp(-0.5 * (x / 1.2) ** 2)
    kernel = kernel / kernel.sum()
    slow = 1 + 10 * torch.einsum("i,j,k->ijk", kernel, kernel, kernel)
    torch.testing.assert_close(weights[0, 0, 2:13, 2:13, 2:13].double(), slow, atol=1e-5, rtol=1e-5)
    assert (lesion_weights(torch.zeros(1, 1, 5, 5, 5)) == 1).all()  # a patch without a lesion still teaches


def test_features_are_compared_by_direction_alone() -> None:
    teacher = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), requires_grad=True)
    student = (3.5 * teacher.detach()).requires_grad_(True)
    assert feature_loss(student, teacher) < 1e-6
    assert feature_loss(-student, teacher).item() == pytest.approx(2.0)
    feature_loss(student.flip(1), teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    with pytest.raises(ConfigError, match="one shape"):
        feature_loss(student, teacher[:, :5])
