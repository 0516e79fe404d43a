import pytest
import torch

from fmct.errors import ConfigError
from fmct.models.positions import (
    LearnedPositions,
    SinCosPositions,
    patch_centres,
    remember,
    resize_positions,
    sincos_positions,
)
from tests.models.references_encoder import head_ct_sincos

CPU = torch.device("cpu")


@pytest.mark.parametrize(("grid", "dim"), [((8, 8, 8), 768), ((2, 5, 3), 48), ((1, 1, 4), 6)])
def test_sincos_layout_of_the_head_ct_model(grid: tuple[int, int, int], dim: int):
    torch.testing.assert_close(sincos_positions(grid, dim).double(), head_ct_sincos(grid, dim), rtol=0, atol=1e-7)


def test_a_width_that_six_does_not_divide_ends_in_zeros():
    vectors = sincos_positions((2, 2, 2), 64)
    assert vectors.shape == (8, 64)
    assert vectors[:, 60:].abs().max() == 0
    torch.testing.assert_close(vectors[:, :60].double(), head_ct_sincos((2, 2, 2), 60), rtol=0, atol=1e-7)


def test_sincos_in_millimetres_equals_patch_units_at_the_reference_spacing():
    patch, mm = (SinCosPositions(48, reference_mm=(2.0, 1.0, 1.0), unit=unit) for unit in ("patch", "mm"))
    spacing = torch.tensor([[2.0, 1.0, 1.0], [4.0, 1.0, 0.5]])
    vectors = mm((3, 4, 5), spacing, CPU)
    torch.testing.assert_close(vectors[:1], patch((3, 4, 5), spacing, CPU), rtol=0, atol=1e-6)
    torch.testing.assert_close(mm((3, 4, 5), None, CPU), patch((3, 4, 5), None, CPU), rtol=0, atol=0)
    # at twice the slice distance, token z of the second crop lies where token 2 z of the first grid would
    far = patch((5, 4, 5), None, CPU).reshape(5, 4, 5, 48)[::2, :, 0]
    torch.testing.assert_close(vectors[1].reshape(3, 4, 5, 48)[:, :, 0], far, rtol=0, atol=1e-5)


def test_learned_positions_are_the_table_itself_at_its_own_grid():
    positions = LearnedPositions((2, 3, 4), 6)
    positions.init_weights()
    assert positions((2, 3, 4), None, CPU) is positions.table
    assert positions.table.std().item() == pytest.approx(0.02, rel=0.3)


def test_learned_positions_start_at_sincos_when_asked():
    positions = LearnedPositions((2, 3, 4), 24, initial="sincos")
    positions.init_weights()
    torch.testing.assert_close(positions.table[0].double(), head_ct_sincos((2, 3, 4), 24), rtol=0, atol=1e-7)
    assert positions.table.requires_grad


@pytest.mark.parametrize("new", [(3, 3, 3), (6, 12, 4), (1, 5, 7)])
def test_learned_positions_interpolate_linearly_on_grids_of_any_shape(new: tuple[int, int, int]):
    """A table that is linear in the tokens' centres stays so, away from the table's outermost centres."""
    old = (6, 8, 5)
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def places(grid: tuple[int, int, int]) -> torch.Tensor:
        return patch_centres(grid) / torch.tensor(grid, dtype=torch.float64)  # in units of the crop, centre 0

    table = (places(old) @ slope).reshape(1, -1, 1)
    limit = torch.tensor([(n - 1) / 2 / n for n in old], dtype=torch.float64)
    expected = places(new).clamp(-limit, limit) @ slope
    torch.testing.assert_close(resize_positions(table, old, new)[0, :, 0], expected, rtol=0, atol=1e-12)


def test_interpolated_positions_pass_gradients_to_the_table():
    positions = LearnedPositions((2, 2, 2), 6)
    positions.init_weights()
    positions((3, 1, 4), None, CPU).sum().backward()
    assert positions.table.grad is not None
    assert positions.table.grad.sum().item() == pytest.approx(3 * 1 * 4 * 6, rel=1e-5)


def test_patch_centres_are_relative_to_the_crop():
    centres = patch_centres((2, 1, 3))
    assert centres.tolist() == [[-0.5, 0, -1], [-0.5, 0, 0], [-0.5, 0, 1], [0.5, 0, -1], [0.5, 0, 0], [0.5, 0, 1]]


def test_remembered_tables_are_few_and_ordinary():
    cache: dict[object, torch.Tensor] = {}
    with torch.inference_mode():
        for n in range(40):
            made = remember(cache, n, lambda n=n: torch.full((2,), float(n)))
            assert made[0] == n
    assert len(cache) <= 16
    assert not any(tensor.is_inference() for tensor in cache.values())


@pytest.mark.parametrize(
    "make",
    [
        lambda: LearnedPositions((1, 1, 1), 6, initial="ones"),
        lambda: SinCosPositions(6, reference_mm=(1, 1, 1), unit="m"),
    ],
)
def test_unknown_choices_are_named(make):
    with pytest.raises(ConfigError, match="expected"):
        make()
