import pytest
import torch

from fmct.errors import ConfigError
from fmct.losses.tokens import small_cell, token_fractions, token_map, valid_tokens


def test_g4_an_anisotropic_stride_gives_the_shares_of_a_hand_checked_case():
    """G4: stride (2, 4, 4) on 4 × 4 × 4 makes two tokens of 32 voxels."""
    mask, valid = torch.zeros(1, 4, 4, 4), torch.ones(1, 4, 4, 4)
    mask[0, 0, 0, :2] = 1  # two voxels of the first token
    valid[0, 2, :, :] = 0  # half of the second token
    mask[0, 2:, 1, 1] = 1  # one voxel outside, one inside what is valid
    v, r = token_fractions(mask, valid, (2, 4, 4))
    assert v.shape == r.shape == (1, 1, 2, 1, 1)
    torch.testing.assert_close(v.flatten(), torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(r.flatten(), torch.tensor([2 / 32, 1 / 16]))


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 3, 2), (3, 2, 5)])
def test_shares_equal_a_loop_also_where_tokens_stick_out(stride):
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(2, 5, 6, 7, generator=generator) < 0.4).double()
    valid = (torch.rand(2, 5, 6, 7, generator=generator) < 0.7).double()
    v, r = token_fractions(mask, valid, stride)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in (2, *v.shape[2:]))).tolist():
        b, *token = index
        part = (b, *(slice(t * s, (t + 1) * s) for t, s in zip(token, stride, strict=True)))
        known = valid[part].sum().item()
        assert v[(b, 0, *token)].item() == pytest.approx(known / (stride[0] * stride[1] * stride[2]))
        expected = (valid[part] * mask[part]).sum().item() / known if known else 0.0
        assert r[(b, 0, *token)].item() == pytest.approx(expected)


def test_s5_a_map_of_384_becomes_24_and_a_single_voxel_survives():
    """S5, with one voxel of lesion."""
    mask = torch.zeros(1, 1, 384, 384)
    mask[0, 0, 100, 383] = 1
    _, r = token_fractions(mask, torch.ones_like(mask), (1, 16, 16))
    assert r.shape == (1, 1, 1, 24, 24)
    assert r.flatten().nonzero().flatten().tolist() == [6 * 24 + 23]
    assert r.sum().item() == pytest.approx(1 / 256)


def test_a_padded_grid_is_invalid_beyond_the_volume():
    v, _ = token_fractions(torch.zeros(1, 20, 8, 8), torch.ones(1, 20, 8, 8), 4, grid=(6, 2, 2))
    assert v[0, 0, :, 0, 0].tolist() == [1, 1, 1, 1, 1, 0]
    with pytest.raises(ConfigError, match="does not cover"):
        token_fractions(torch.zeros(1, 20, 8, 8), torch.ones(1, 20, 8, 8), 4, grid=(4, 2, 2))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="one shape"):
        token_fractions(torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 5), 2)
    with pytest.raises(ConfigError, match=r"\(B, 1, D, H, W\)"):
        token_fractions(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 2, 4, 4, 4), 2)
    with pytest.raises(ConfigError, match="valid: expected one value a token"):
        token_map(torch.zeros(1, 2, 2, 3), torch.zeros(1, 5, 2, 2, 2), "valid")


def test_half_of_a_token_makes_it_valid():
    share = torch.tensor([0.49, 0.5, 1.0, 0.0]).view(1, 1, 1, 2, 2)
    assert valid_tokens(share, torch.zeros(1, 3, 1, 2, 2)).tolist() == [[False, True, True, False]]


def test_small_cells_are_named():
    assert small_cell((1.0, 1.0, 1.0), 4) is None
    text = small_cell((3.0, 1.0, 1.0), (2, 2, 4))
    assert text is not None
    assert "6 × 2 × 4 mm" in text
