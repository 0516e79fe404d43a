import math

import pytest
import torch

from fmct.models.rope import RotaryTable, both_halves, rotate
from tests.models.references_encoder import rotary_angles, turn

CPU = torch.device("cpu")


def table(head_dim: int = 64, patch: tuple[int, int, int] = (4, 16, 16), **settings: float) -> RotaryTable:
    return RotaryTable(
        head_dim, patch_size=patch, reference_mm=(5.0, 1.0, 1.0), min_period_mm=32.0, max_period_mm=1600.0, **settings
    )


def angles_of(made: torch.Tensor) -> torch.Tensor:
    return torch.atan2(made[:, :, 1], made[:, :, 0])


@pytest.mark.parametrize(("head_dim", "count"), [(64, 10), (72, 12), (48, 8), (32, 5), (6, 1)])
def test_each_axis_has_a_sixth_of_the_head(head_dim: int, count: int):
    frequencies = table(head_dim).frequencies()
    assert frequencies.shape == (count,)
    assert (2 * math.pi / frequencies[0]).item() == pytest.approx(32.0)
    if count > 1:
        assert (2 * math.pi / frequencies[-1]).item() == pytest.approx(1600.0)
        steps = frequencies[1:] / frequencies[:-1]
        torch.testing.assert_close(steps, steps[:1].expand_as(steps))
    made = table(head_dim)((2, 2, 2), None, None, prefix=0, device=CPU)
    still = (made[:, :, 1].abs().amax((0, 1)) == 0).sum().item()
    assert still == head_dim // 2 - 3 * count


def test_angles_are_millimetres_from_the_crops_centre():
    spacing = torch.tensor([[5.0, 1.0, 1.0], [2.5, 0.6, 0.7]])
    made = table()((3, 4, 2), spacing, None, prefix=3, device=CPU)
    assert made.shape == (2, 3 + 24, 2, 32)
    assert made[:, :3, 0].eq(1).all()
    assert made[:, :3, 1].eq(0).all()
    for crop, patch_mm in enumerate([(20.0, 16.0, 16.0), (10.0, 9.6, 11.2)]):
        expected = rotary_angles((3, 4, 2), patch_mm, 64, 32.0, 1600.0)
        torch.testing.assert_close(made[crop, 3:, 0].double(), expected.cos(), rtol=0, atol=2e-6)
        torch.testing.assert_close(made[crop, 3:, 1].double(), expected.sin(), rtol=0, atol=2e-6)
    default = table()((3, 4, 2), None, None, prefix=3, device=CPU)
    torch.testing.assert_close(default, made[:1])


def test_rotation_turns_queries_and_keys_and_leaves_values():
    torch.manual_seed(0)
    qkv = torch.randn(5, 3, 2, 12, dtype=torch.float64)
    angles = torch.randn(5, 6, dtype=torch.float64)
    turned = rotate(qkv, both_halves(torch.stack([angles.cos(), angles.sin()], dim=1)))
    assert torch.equal(turned[:, 2], qkv[:, 2])
    for token in range(5):
        for part in range(2):
            for head in range(2):
                expected = turn(qkv[token, part, head], angles[token])
                torch.testing.assert_close(turned[token, part, head], expected, rtol=0, atol=1e-14)


def test_rotation_has_the_right_gradient():
    torch.manual_seed(0)
    qkv = torch.randn(3, 3, 2, 12, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(3, 6, dtype=torch.float64)
    spins = both_halves(torch.stack([angles.cos(), angles.sin()], dim=1))
    assert torch.autograd.gradcheck(lambda x: rotate(x, spins), (qkv,))


def test_half_precision_is_turned_in_float32_and_rounded_once():
    torch.manual_seed(0)
    qkv = torch.randn(64, 3, 2, 12).bfloat16()
    angles = torch.randn(64, 6)
    spins = both_halves(torch.stack([angles.cos(), angles.sin()], dim=1))
    turned = rotate(qkv, spins)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(qkv.float(), spins).bfloat16())


def test_scores_depend_on_offsets_in_millimetres_only():
    """The same two structures, 30 mm apart, in crops of another place, grid and spacing: the same attention score."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 64, dtype=torch.float64)
    rotary = table(64, patch=(4, 4, 4))

    def score(grid: tuple[int, int, int], spacing_mm: float, first: int, second: int) -> float:
        spacing = torch.full((1, 3), spacing_mm)
        spins = rotary(grid, spacing, None, prefix=0, device=CPU)[0]
        qkv = torch.zeros(spins.shape[0], 3, 1, 64, dtype=torch.float64)
        qkv[first, 0, 0], qkv[second, 1, 0] = q, k
        turned = rotate(qkv, both_halves(spins))
        return (turned[first, 0, 0] @ turned[second, 1, 0]).item()

    along_z = score((12, 1, 1), 1.5, 0, 5)  # 5 patches of 6 mm
    assert score((12, 1, 1), 1.5, 6, 11) == pytest.approx(along_z, abs=1e-5)
    assert score((30, 3, 2), 1.5, 8 * 6 + 3, 13 * 6 + 3) == pytest.approx(along_z, abs=1e-5)
    assert score((12, 1, 1), 0.75, 0, 10) == pytest.approx(along_z, abs=1e-5)  # 10 patches of 3 mm
    assert abs(score((12, 1, 1), 1.5, 0, 6) - along_z) > 1e-3
    assert abs(score((1, 12, 1), 1.5, 0, 5) - along_z) > 1e-3


def test_random_scale_stays_in_its_bounds_and_is_drawn_by_key():
    rotary = table(patch=(4, 4, 4), rescale=2.0, jitter=1.5)
    keys = torch.arange(4000)
    factors = rotary._factors(keys)
    assert factors.shape == (4000, 3)
    common = factors.log().mean(1)
    assert factors.log().abs().max() <= math.log(2 * 1.5) + 1e-6
    assert abs(common.mean()) < 0.03
    assert (factors[:, 0] / factors[:, 1]).log().abs().max() <= 2 * math.log(1.5) + 1e-6
    torch.testing.assert_close(rotary._factors(keys[7:9]), factors[7:9], rtol=0, atol=0)
    only_common = table(rescale=2.0)._factors(keys)
    torch.testing.assert_close(only_common[:, :1].expand(-1, 3), only_common)
    assert only_common.log().std().item() == pytest.approx(math.log(2) / 3**0.5, rel=0.05)


def test_random_scale_changes_the_table_in_training_only():
    rotary = table(rescale=2.0)
    keys = torch.tensor([3])
    fixed = table()((2, 2, 2), None, None, prefix=1, device=CPU)
    changed = rotary((2, 2, 2), None, keys, prefix=1, device=CPU)
    spacing = rotary._factors(keys) * torch.tensor([[5.0, 1.0, 1.0]])
    torch.testing.assert_close(changed, table()((2, 2, 2), spacing, None, prefix=1, device=CPU))
    assert not torch.allclose(changed, fixed)
    rotary.eval()
    assert torch.equal(rotary((2, 2, 2), None, keys, prefix=1, device=CPU), fixed)
