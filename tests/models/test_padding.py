import torch

from fmct.models.padding import crop_to, pad_to, padded_size


def test_sizes_hold_whole_multiples() -> None:
    assert padded_size((9, 16, 1), (4, 16, 5)) == (12, 16, 5)
    assert padded_size((9, 16, 1), (4, 16, 5), least=2) == (12, 32, 10)


def test_air_is_added_at_the_far_ends_and_cut_off_again() -> None:
    x = torch.rand(2, 1, 3, 4, 5)
    padded = pad_to(x, (4, 4, 8), -1.0)
    assert padded.shape == (2, 1, 4, 4, 8)
    assert torch.equal(crop_to(padded, (3, 4, 5)), x)
    assert (padded[:, :, 3] == -1).all()
    assert (padded[..., 5:] == -1).all()
    assert pad_to(x, (3, 4, 5)) is x
