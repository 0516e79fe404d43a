import pytest
import torch

from fmct.errors import ConfigError
from fmct.losses.gram import gram_loss
from tests.losses import references_objectives as slow
from tests.losses.golden import golden_inputs


@pytest.mark.parametrize("level", ["image", "batch"])
@pytest.mark.parametrize("negatives", ["keep", "clip", "clip-teacher"])
def test_value_and_gradient_are_those_of_the_loop(level, negatives):
    generator = torch.Generator().manual_seed(4)
    student = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    fast = gram_loss(student, teacher, level=level, negatives=negatives)
    expected = slow.gram(student, teacher, level, negatives)
    torch.testing.assert_close(fast, expected, rtol=1e-12, atol=0)
    (got,), (wanted,) = torch.autograd.grad(fast, student), torch.autograd.grad(expected, student)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("level", "expected"), [("image", 0.2089948), ("batch", 0.2283238)])
def test_golden_numbers(level, expected):
    inputs = golden_inputs()
    loss = gram_loss(inputs.patches, inputs.anchor, level=level)
    torch.testing.assert_close(loss, torch.tensor(expected), rtol=1e-6, atol=0)


def test_equal_features_cost_nothing_and_only_the_student_has_a_gradient():
    features = torch.randn(2, 6, 4, requires_grad=True)
    teacher = features.detach().clone().requires_grad_()
    loss = gram_loss(features, teacher)
    loss.backward()
    assert loss.item() == 0.0
    assert teacher.grad is None


def test_products_stay_fp32_under_autocast():
    inputs = golden_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(gram_loss(inputs.patches, inputs.anchor), torch.tensor(0.2089948), rtol=1e-6, atol=0)


def test_unknown_words_and_unequal_shapes_are_refused():
    features = torch.zeros(1, 2, 3)
    with pytest.raises(ConfigError, match="level 'images'"):
        gram_loss(features, features, level="images")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="equal shapes"):
        gram_loss(features, torch.zeros(1, 3, 3))
