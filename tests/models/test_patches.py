import pytest
import torch
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.models.patches import PatchEmbedding, patchify, unpatchify


def test_patches_run_z_slowest_and_hold_channel_then_voxels():
    x = torch.arange(2 * 3 * 4 * 6 * 4).reshape(2, 3, 4, 6, 4)
    patches = patchify(x, (2, 3, 2))
    assert patches.shape == (2, 8, 36)
    for token, (z, y, w) in enumerate((z, y, w) for z in range(2) for y in range(2) for w in range(2)):
        block = x[:, :, 2 * z : 2 * z + 2, 3 * y : 3 * y + 3, 2 * w : 2 * w + 2]
        assert torch.equal(patches[:, token], block.flatten(1))


@pytest.mark.parametrize(("size", "patch"), [((4, 6, 4), (2, 3, 2)), ((8, 4, 12), 4), ((1, 2, 3), 1)])
def test_unpatchify_is_the_inverse(size: tuple[int, int, int], patch: int | tuple[int, int, int]):
    x = torch.randn(2, 3, *size)
    edge = (patch,) * 3 if isinstance(patch, int) else patch
    grid = [s // p for s, p in zip(size, edge, strict=True)]
    assert torch.equal(unpatchify(patchify(x, patch), patch, grid), x)


def test_embedding_is_the_strided_convolution():
    torch.manual_seed(0)
    embedding = PatchEmbedding(2, 12, (2, 4, 3)).double()
    torch.nn.init.normal_(embedding.weight)
    torch.nn.init.normal_(embedding.bias)
    x = torch.randn(2, 2, 4, 8, 9, dtype=torch.float64)
    expected = functional.conv3d(x, embedding.weight, embedding.bias, stride=(2, 4, 3)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embedding(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda: patchify(torch.zeros(1, 1, 4, 4, 5), 2),
        lambda: patchify(torch.zeros(1, 4, 4, 4), 2),
        lambda: unpatchify(torch.zeros(1, 7, 8), 2, (2, 2, 2)),
        lambda: unpatchify(torch.zeros(1, 8, 9), 2, (2, 2, 2)),
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(ConfigError, match=r"expected|divide|form"):
        call()
