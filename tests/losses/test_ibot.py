import pytest
import torch

from fmct.errors import ConfigError
from fmct.losses.dino import sinkhorn_knopp
from fmct.losses.ibot import ibot_loss, token_weights
from tests.losses import references_objectives as slow
from tests.losses.golden import golden_inputs


def masks(counts: list[int], tokens: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(counts))
    mask = torch.zeros(len(counts), tokens, dtype=torch.bool)
    for row, count in enumerate(counts):
        mask[row, torch.randperm(tokens, generator=generator)[:count]] = True
    return mask


@pytest.mark.parametrize("counts", [[3], [0, 2], [1, 5, 0, 9], [4, 4, 4, 4]])
@pytest.mark.parametrize("temperature", [0.1, 0.4])
def test_value_and_gradient_are_those_of_the_loop_over_tokens(counts, temperature):
    mask = masks(counts)
    generator = torch.Generator().manual_seed(7)
    student = torch.randn(int(mask.sum()), 6, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(int(mask.sum()), 6, generator=generator, dtype=torch.float64).softmax(-1)
    fast, expected = ibot_loss(student, teacher, mask, temperature), slow.ibot(student, teacher, mask, temperature)
    torch.testing.assert_close(fast, expected, rtol=1e-12, atol=0)
    (got,), (wanted,) = torch.autograd.grad(fast, student), torch.autograd.grad(expected, student)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)
    assert torch.autograd.gradcheck(lambda s: ibot_loss(s, teacher, mask, temperature), (student,))


def test_golden_number():
    inputs = golden_inputs()
    teacher = sinkhorn_knopp(inputs.patch_teacher, 0.07)
    loss = ibot_loss(inputs.patch_student, teacher, inputs.mask)
    torch.testing.assert_close(loss, torch.tensor(7.721855), rtol=1e-6, atol=0)


def test_rows_meet_their_own_view():
    # Two tokens of one view weigh half each, the single token of the other view weighs one.
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert token_weights(mask, torch.zeros(3)).tolist() == [0.5, 0.5, 1.0]


def test_unmasked_views_count_in_the_denominator():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4).softmax(1)
    mask = masks([3])
    padded = torch.cat([mask, torch.zeros(1, 9, dtype=torch.bool)])
    torch.testing.assert_close(2 * ibot_loss(student, teacher, padded), ibot_loss(student, teacher, mask))


def test_no_masked_token_gives_zero_with_a_gradient_path():
    student = torch.zeros(0, 4, requires_grad=True)
    loss = ibot_loss(student, torch.zeros(0, 4), masks([0, 0]))
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad is not None


def test_unequal_shapes_are_refused():
    with pytest.raises(ConfigError, match=r"\(2, 4\)"):
        ibot_loss(torch.zeros(2, 4), torch.zeros(3, 4), masks([2]))
