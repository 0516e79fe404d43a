import pytest
import torch
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.models.adaptation import adapt
from fmct.models.segmenter import Segmenter, SegmenterConfig, build_segmenter
from fmct.models.taps import tap, tapped_blocks
from tests.models.networks import noise, tiny_encoder


def test_taps_lie_at_equal_shares_of_the_depth() -> None:
    assert tapped_blocks(12, 4) == [2, 5, 8, 11]
    assert tapped_blocks(10, 4) == [2, 4, 7, 9]
    assert tapped_blocks(3, 2) == [1, 2]
    assert tapped_blocks(2, 1) == [1]
    with pytest.raises(ConfigError, match="expected 1 to 3"):
        tapped_blocks(3, 4)


def test_the_last_tap_is_the_encoders_own_output() -> None:
    encoder, x = tiny_encoder(), noise(2, 1, 4, 8, 12)
    spacing = torch.tensor([[3.0, 1.0, 1.0], [1.0, 2.0, 1.0]])
    features, expected = tap(encoder, x, taps=4, spacing=spacing), encoder(x, spacing)
    assert [tuple(m.shape) for m in features.maps] == [(2, 24, 2, 2, 3)] * 4
    torch.testing.assert_close(features.maps[-1].flatten(2).transpose(1, 2), expected.patches)
    torch.testing.assert_close(features.cls, expected.cls)


@pytest.mark.parametrize("size", [(4, 8, 8), (5, 9, 11), (1, 1, 1)])
def test_any_size_comes_back_g3(size: tuple[int, int, int]) -> None:
    """G3: padded with air to whole patches, logits cut back; the result is that of the padded volume."""
    model = build_segmenter(tiny_encoder(), SegmenterConfig(width=16, stem_channels=4, air=-1.0), outputs=2).eval()
    x = noise(1, 1, *size)
    padded = torch.full((1, 1, *(-(-s // p) * p for s, p in zip(size, (2, 4, 4), strict=True))), -1.0)
    padded[..., : size[0], : size[1], : size[2]] = x
    output, whole = model(x), model(padded)
    assert output.logits.shape == (1, 2, *size)
    assert torch.equal(output.logits, whole.logits[..., : size[0], : size[1], : size[2]])
    assert torch.equal(output.neck, whole.neck)
    grid = tuple(n // s for n, s in zip(padded.shape[2:], model.neck_stride, strict=True))
    assert output.neck.shape[2:] == grid
    assert [t.shape[2:] for t in output.taps] == [
        torch.Size(n // s for n, s in zip(padded.shape[2:], stride, strict=True)) for stride in model.tap_strides
    ]


def lesions(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return volumes of two tokens of 8³ voxels with one bright cube of 2³ voxels each, anywhere, and their masks."""
    size = (8, 8, 16)
    x, mask = 0.3 * noise(count, 1, *size, seed=seed), torch.zeros(count, 1, *size)
    generator = torch.Generator().manual_seed(seed)
    for row in range(count):
        z, y, w = (int(torch.randint(0, n - 1, (1,), generator=generator)) for n in size)
        mask[row, 0, z : z + 2, y : y + 2, w : w + 2] = 1
    return x + 2 * mask, mask


def dice_after_training(*, without_stem: bool) -> float:
    """Return the Dice on new volumes of a segmenter whose tokens have 64 times the lesion's volume."""
    torch.manual_seed(0)
    model = Segmenter(tiny_encoder(patch_size=8, depth=2), taps=2, width=16, stem_channels=8)
    adapt(model, "frozen")
    if without_stem:
        model.decoder.stem.register_forward_hook(lambda _, __, maps: [torch.zeros_like(m) for m in maps])
    optimiser = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=3e-2)
    for step in range(75):
        x, mask = lesions(8, seed=step)
        logits = model(x).logits
        overlap = 1 - 2 * (logits.sigmoid() * mask).sum() / (logits.sigmoid().sum() + mask.sum())
        optimiser.zero_grad()
        (functional.binary_cross_entropy_with_logits(logits, mask) + overlap).backward()
        optimiser.step()
    x, mask = lesions(16, seed=1000)
    with torch.no_grad():
        found = model(x).logits > 0
    return float(2 * (found & (mask > 0)).sum() / (found.sum() + mask.sum()))


def test_a_lesion_smaller_than_a_token_survives() -> None:
    """A cube of 8 voxels inside tokens of 512: outlined through the stem; the same training fails without it."""
    assert dice_after_training(without_stem=False) > 0.8
    assert dice_after_training(without_stem=True) < 0.4


def test_names_carry_no_wrapper() -> None:
    names = list(Segmenter(tiny_encoder(), width=16, stem_channels=4).state_dict())
    encoder = [name.removeprefix("encoder.") for name in names if name.startswith("encoder.")]
    assert encoder == list(tiny_encoder().state_dict())
    assert all(name.split(".")[0] in {"encoder", "decoder"} for name in names)
