import pytest
import torch

from fmct.losses.koleo import koleo_loss
from tests.losses import references_objectives as slow
from tests.losses.golden import golden_inputs


@pytest.mark.parametrize("images", [2, 3, 17])
@pytest.mark.parametrize("eps", [1e-3, 1e-1])
def test_value_and_gradient_are_those_of_the_loop(images, eps):
    features = torch.randn(images, 6, generator=torch.Generator().manual_seed(images), dtype=torch.float64)
    features.requires_grad_()
    fast, expected = koleo_loss(features, eps=eps), slow.koleo(features, eps)
    torch.testing.assert_close(fast, expected, rtol=1e-10, atol=1e-12)
    (got,), (wanted,) = torch.autograd.grad(fast, features), torch.autograd.grad(expected, features)
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)
    assert torch.autograd.gradcheck(lambda f: koleo_loss(f, eps=eps), (features,))


def test_golden_number():
    torch.testing.assert_close(koleo_loss(golden_inputs().features), torch.tensor(-0.1504083), rtol=5e-6, atol=0)


def test_one_image_gives_zero_with_a_gradient_path():
    features = torch.randn(1, 5, requires_grad=True)
    loss = koleo_loss(features)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(features.grad, torch.zeros(1, 5))  # type: ignore[arg-type]


def test_duplicates_and_near_duplicates_stay_bounded():
    base = torch.randn(1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    base = base / base.norm()
    for gap in (0.0, 1e-12, 1e-8, 1e-5, 1e-3, 1e-2):
        features = torch.cat([base, base + gap, -base, -base + gap]).requires_grad_()
        loss = koleo_loss(features)
        loss.backward()
        assert loss.item() <= 6.91
        # Each of the four terms is divided by 4 and pushes both ends of its pair: at most 2 · 500 / 4 on one row.
        assert features.grad.norm(dim=1).max() <= 250  # type: ignore[union-attr]


def test_scale_does_not_matter_and_bf16_is_computed_in_fp32():
    features = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(koleo_loss(features), koleo_loss(features * torch.rand(6, 1).add(0.5)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(koleo_loss(features), koleo_loss(features.clone()))
        assert koleo_loss(features.bfloat16()).dtype == torch.float32
        torch.testing.assert_close(koleo_loss(features).double(), koleo_loss(features.double()), rtol=1e-6, atol=1e-7)
