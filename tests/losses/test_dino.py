import pytest
import torch

from fmct.errors import ConfigError
from fmct.losses.dino import dino_loss, sinkhorn_knopp
from tests.losses import references_objectives as slow
from tests.losses.golden import BATCH, LOCAL, PROTOTYPES, golden_inputs


def probabilities(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(2).softmax(-1)


@pytest.mark.parametrize("views", [2, 4, 10])
@pytest.mark.parametrize("seen", [1, 2])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_value_and_gradient_are_those_of_the_loop_over_pairs(views, seen, images, temperature):
    generator = torch.Generator().manual_seed(views * 10 + images)
    student = torch.randn(views, images, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = probabilities(generator, seen, images, 7)
    fast = dino_loss(student, teacher, temperature)
    expected = slow.dino(student, teacher, temperature)
    torch.testing.assert_close(fast, expected, rtol=1e-12, atol=0)
    (got,), (wanted,) = torch.autograd.grad(fast, student), torch.autograd.grad(expected, student)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)


def test_gradient_agrees_with_finite_differences():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = probabilities(generator, 2, 2, 5)
    assert torch.autograd.gradcheck(lambda s: dino_loss(s, teacher, 0.3), (student,))


def test_golden_number_is_the_sum_of_the_local_and_the_global_part():
    inputs = golden_inputs()
    teacher = sinkhorn_knopp(inputs.teacher, 0.07).view(2, BATCH, PROTOTYPES)
    seen = inputs.student_global.view(2, BATCH, PROTOTYPES)
    student = torch.cat([seen, inputs.student_local.view(LOCAL, BATCH, PROTOTYPES)])
    torch.testing.assert_close(dino_loss(student, teacher), torch.tensor(17.12976 + 1.731206), rtol=1e-6, atol=0)
    # With the global views alone the denominator is 2 instead of 14.
    torch.testing.assert_close(dino_loss(seen, teacher) * 2 / 14, torch.tensor(1.731206), rtol=1e-6, atol=0)


def test_teacher_receives_no_gradient_and_half_precision_is_computed_in_fp32():
    generator = torch.Generator().manual_seed(1)
    student = (100 * torch.randn(3, 2, 64, generator=generator)).bfloat16().requires_grad_()
    teacher = probabilities(generator, 2, 2, 64).float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = dino_loss(student, teacher)
    assert loss.dtype == torch.float32
    loss.backward()
    assert teacher.grad is None
    exact = dino_loss(student.detach().double(), teacher.detach().double())
    torch.testing.assert_close(loss.detach().double(), exact, rtol=1e-6, atol=0)


def test_same_view_pairs_do_not_count():
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 3, 5, generator=generator), probabilities(generator, 2, 3, 5).float()
    changed = teacher.clone()
    changed[0] = changed[0].flip(-1)
    student_zero = student.clone()
    student_zero[1] = 0  # a flat student view: whatever the teacher's view 0 says costs the same
    torch.testing.assert_close(dino_loss(student_zero, teacher), dino_loss(student_zero, changed))


@pytest.mark.parametrize(
    ("student", "teacher"), [((1, 2, 4), (1, 2, 4)), ((3, 2, 4), (2, 3, 4)), ((3, 2, 4), (2, 2, 5))]
)
def test_no_pair_or_unequal_shapes_are_refused(student, teacher):
    with pytest.raises(ConfigError, match=r"v ≠ t"):
        dino_loss(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize("samples", [1, 5, 40])
@pytest.mark.parametrize("prototypes", [3, 32])
@pytest.mark.parametrize("temperature", [0.04, 0.07, 1.0])
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_sinkhorn_agrees_with_the_multiplicative_form(samples, prototypes, temperature, iterations):
    logits = torch.randn(samples, prototypes, generator=torch.Generator().manual_seed(samples), dtype=torch.float64)
    expected = slow.sinkhorn(0.5 * logits, temperature, iterations)
    torch.testing.assert_close(sinkhorn_knopp(0.5 * logits, temperature, iterations), expected, rtol=1e-9, atol=1e-14)
    single = sinkhorn_knopp(0.5 * logits.float(), temperature, iterations)
    torch.testing.assert_close(single.double(), expected, rtol=1e-3, atol=1e-6)


def test_sinkhorn_is_finite_where_the_multiplicative_form_overflows():
    logits = 20 * torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    assert not slow.sinkhorn(logits, 0.04, 3).isfinite().all()
    balanced = sinkhorn_knopp(logits, 0.04)
    assert balanced.isfinite().all()
    torch.testing.assert_close(balanced.sum(1), torch.ones(64))
    exact = sinkhorn_knopp(logits.double(), 0.04)
    assert (balanced - exact).abs().max() < 2e-3


def test_sinkhorn_balances_prototypes_and_leaves_its_argument_alone():
    logits = torch.randn(512, 8, generator=torch.Generator().manual_seed(0)) + torch.linspace(0, 2, 8)
    before = logits.clone()
    balanced = sinkhorn_knopp(logits, 0.5, iterations=30)
    torch.testing.assert_close(balanced.sum(0), torch.full((8,), 64.0), rtol=1e-3, atol=0)
    assert torch.equal(logits, before)
    assert (logits / 0.5).softmax(1).sum(0).std() > 20  # without balancing the masses differ


def test_a_prototype_that_no_sample_likes_is_given_its_mass():
    """Logits 300 temperatures below the others': their exponentials are 0 in fp32, but the first round lifts them."""
    logits = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    logits[:, 3] -= 21.0
    balanced = sinkhorn_knopp(logits, 0.07, iterations=200)
    torch.testing.assert_close(balanced.sum(0), torch.full((16,), 4.0), rtol=1e-2, atol=0)


def test_sinkhorn_of_no_rows_is_empty():
    assert sinkhorn_knopp(torch.zeros(0, 5), 0.07).shape == (0, 5)
