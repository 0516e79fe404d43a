import torch

from fmct.losses.centring import Centre
from tests.losses.golden import golden_inputs


def test_golden_centre_after_one_update():
    centre = Centre(16, momentum=0.9)
    centre.observe(golden_inputs().teacher)
    centre.apply()
    torch.testing.assert_close(centre.value[:3], torch.tensor([-0.0375091, -0.0516510, 0.0177863]), rtol=1e-5, atol=0)


def test_ten_updates_follow_the_recurrence_and_lag_one_step():
    generator = torch.Generator().manual_seed(0)
    centre, expected = Centre(5, momentum=0.8), torch.zeros(5, dtype=torch.float64)
    for step in range(10):
        logits = torch.randn(3 + step, 5, generator=generator)
        targets = centre.targets(logits, 0.07)
        centre.observe(logits)
        torch.testing.assert_close(
            targets.double(), ((logits.double() - expected) / 0.07).softmax(1), rtol=1e-4, atol=1e-7
        )
        centre.apply()
        expected = 0.8 * expected + 0.2 * logits.double().mean(0)
    torch.testing.assert_close(centre.value.double(), expected, rtol=1e-5, atol=1e-7)


def test_accumulated_batches_weigh_by_their_rows():
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, 4, generator=generator), torch.randn(6, 4, generator=generator)
    centre = Centre(4, momentum=0.5)
    for part in (first, second):
        centre.observe(part)
    centre.apply()
    torch.testing.assert_close(centre.value, 0.5 * torch.cat([first, second]).mean(0))


def test_nothing_seen_moves_nothing_and_bad_rows_are_left_out():
    centre = Centre(3, momentum=0.5)
    centre.observe(torch.ones(2, 3))
    centre.apply()
    before = centre.value.clone()
    centre.observe(torch.zeros(0, 3))
    centre.apply()
    assert torch.equal(centre.value, before)
    centre.observe(torch.tensor([[1.0, 2.0, 3.0], [torch.nan, 0.0, 0.0], [torch.inf, 1.0, 1.0]]))
    centre.apply()
    torch.testing.assert_close(centre.value, 0.5 * before + 0.5 * torch.tensor([1.0, 2.0, 3.0]))


def test_state_comes_back_exactly():
    centre, other = Centre(4), Centre(4)
    centre.observe(torch.randn(3, 4))
    centre.apply()
    other.observe(torch.ones(1, 4))  # not yet applied: gone after a load
    other.load(centre.state())
    other.apply()
    assert torch.equal(other.value, centre.value)
