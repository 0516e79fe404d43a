import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.losses.distillation import distillation_loss


def inputs(classes: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, classes, generator=generator, dtype=dtype).requires_grad_()
    teacher = 3 * torch.randn(5, classes, generator=generator, dtype=dtype)
    return student, teacher, torch.randint(0, max(classes, 2), (5,), generator=generator)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_identical_logits_cost_nothing_and_offsets_play_no_part(temperature):
    student, teacher, labels = inputs()
    assert abs(distillation_loss(teacher.clone(), teacher, labels, temperature, 1.0)) < 1e-7
    cost = distillation_loss(student, teacher, labels, temperature, 1.0)
    assert cost > 0
    shift = torch.arange(5.0).double()[:, None]
    torch.testing.assert_close(distillation_loss(student + shift, teacher - 2 * shift, labels, temperature, 1.0), cost)


def test_the_ends_of_alpha_are_cross_entropy_and_squared_temperature_times_kl():
    student, teacher, labels = inputs()
    assert distillation_loss(student, teacher, labels, 4.0, 0.0) == functional.cross_entropy(student, labels)
    p, q = (teacher / 4).softmax(1), (student / 4).softmax(1)
    kl = sum(p[i, k] * math.log(p[i, k] / q[i, k].detach()) for i in range(5) for k in range(3)) / 5
    assert distillation_loss(student, teacher, labels, 4.0, 1.0).item() == pytest.approx(16 * kl.item())


@pytest.mark.parametrize(("temperature", "alpha"), [(4.0, 0.4), (1.5, 0.9)])
def test_the_gradient_is_the_closed_form(temperature, alpha):
    student, teacher, labels = inputs()
    (gradient,) = torch.autograd.grad(distillation_loss(student, teacher, labels, temperature, alpha), student)
    soft = (student / temperature).softmax(1) - (teacher / temperature).softmax(1)
    hard = student.softmax(1) - functional.one_hot(labels, 3)
    torch.testing.assert_close(gradient, (alpha * temperature * soft + (1 - alpha) * hard) / 5)
    assert torch.autograd.gradcheck(lambda s: distillation_loss(s, teacher, labels, temperature, alpha), (student,))


def test_hot_distillation_is_the_distance_of_centred_logits():
    student, teacher, labels = inputs()
    centred = [z - z.mean(1, keepdim=True) for z in (student, teacher)]
    wanted = (centred[0] - centred[1]).square().sum(1).mean() / 6
    torch.testing.assert_close(distillation_loss(student, teacher, labels, 1e3, 1.0), wanted, rtol=1e-3, atol=0)


def test_the_teacher_gets_no_gradient_and_its_logits_are_taken_as_logits():
    student, teacher, labels = inputs()
    teacher.requires_grad_()
    distillation_loss(student, teacher, labels, 4.0, 0.5).backward()
    assert teacher.grad is None
    # A sure teacher's softened target, at logits (0, 10): the student that meets it is as sure.
    sure = torch.tensor([[0.0, 10.0]])
    gradient = torch.autograd.functional.jacobian(
        lambda s: distillation_loss(s, sure, torch.tensor([1]), 4.0, 1.0), torch.tensor([[0.0, 4 * math.log(9.0)]])
    )
    assert gradient[0, 1] < 0  # more than 0.9 is still asked for


def test_one_column_is_a_logit_against_zero():
    student, teacher, labels = inputs(classes=1)
    two = [torch.cat([torch.zeros_like(z), z], 1) for z in (student, teacher)]
    assert distillation_loss(student, teacher, labels, 2.0, 0.3) == distillation_loss(*two, labels, 2.0, 0.3)


def test_unknown_labels_leave_the_teacher_alone():
    student, teacher, labels = inputs()
    labels[:2] = -1
    soft = distillation_loss(student, teacher, labels, 4.0, 1.0)
    hard = functional.cross_entropy(student[2:], labels[2:])
    torch.testing.assert_close(distillation_loss(student, teacher, labels, 4.0, 0.3), 0.3 * soft + 0.7 * hard)
    none = distillation_loss(student, teacher, torch.full((5,), -1), 4.0, 0.0)
    assert none.item() == 0
    assert not torch.autograd.grad(none, student)[0].any()


def test_what_does_not_fit_is_refused():
    student, teacher, labels = inputs()
    with pytest.raises(ConfigError, match="both sides"):
        distillation_loss(student, teacher[:, :2], labels, 4.0, 0.5)
    for temperature, alpha in ((0.0, 0.5), (4.0, 1.5)):
        with pytest.raises(ConfigError, match="temperature > 0"):
            distillation_loss(student, teacher, labels, temperature, alpha)
