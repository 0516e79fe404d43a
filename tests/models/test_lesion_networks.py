import pytest
import torch
from torch import nn

from fmct.errors import ConfigError
from fmct.models.encoder import EncoderConfig
from fmct.models.lesion_networks import ConvDetector, ConvJudge, centre_features, norm
from fmct.models.lesion_segmenter import LesionNetworkConfig, build_lesion_network


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_published_sizes() -> None:
    """B.4: 3.43 M, 5.37 M and 3.14 M parameters."""
    with torch.device("meta"):
        counts = size(ConvDetector()), size(ConvJudge(voxels=True)), size(ConvJudge())
    assert counts == (3_433_611, 5_373_165, 3_139_371)


@pytest.mark.parametrize("shape", [(24, 24, 24), (13, 18, 16)])
def test_any_size_gives_logits_of_every_voxel(shape: tuple[int, int, int]) -> None:
    x = torch.randn(2, 2, *shape)
    voxels = ConvDetector(width=4, kind="group")(x).voxels
    assert voxels is not None
    assert voxels.shape == (2, 1, *shape)
    both = ConvJudge(width=4, kind="group", voxels=True)(x)
    assert both.voxels is not None
    assert (both.voxels.shape, both.patch.shape, both.features.shape) == ((2, 1, *shape), (2, 2), (2, 16))
    alone = ConvJudge(width=4, kind="group")(x)
    assert ConvJudge(width=4, kind="group", centred=True)(x).patch.shape == (2, 2)
    assert alone.voxels is None


def test_a_centred_head_reads_the_candidate_and_not_its_neighbour() -> None:
    """The patch's middle is what is judged, at any size: a lesion beside it leaves these features as they are."""
    for shape in ((16, 16, 16), (13, 16, 18)):
        maps = [torch.zeros(1, 1, *(-(-n // 4) * 4 // stride for n in shape)) for stride in (1, 2, 4)]
        for stride, one in zip((1, 2, 4), maps, strict=True):
            one[0, 0, *(n // 2 // stride for n in shape)] = stride
        assert centre_features(maps, shape).tolist() == [[1, 2, 4]]
        for one in maps:
            one.zero_()
            one[..., 0, :, :] = one[..., -1] = 9
        assert centre_features(maps[:2], shape).tolist() == [[0, 0]]


def test_the_published_head_is_one_linear_map_and_ours_is_not() -> None:
    """B-D4: fully connected layers without activation between them collapse."""
    for activated in (False, True):
        head = ConvJudge(width=4, kind="group", activated_head=activated).head.layers.double()
        x, y = torch.randn(2, 3, 8 * 8, dtype=torch.float64)
        linear = head(x) + head(y) - head(torch.zeros_like(x))
        assert torch.allclose(head(x + y), linear, atol=1e-9) is not activated


def test_the_encoder_sees_the_image_and_the_stem_every_channel() -> None:
    config = LesionNetworkConfig(
        kind="encoder",
        encoder=EncoderConfig(embed_dim=48, depth=2, num_heads=3, patch_size=[4, 4, 4], num_registers=0),
        decoder_width=8,
        stem_channels=4,
    )
    network = build_lesion_network(config, voxels=True, patch=True).eval()
    assert network.encoder.in_channels == 1
    x = torch.randn(1, 2, 14, 16, 12)
    spacing = torch.ones(1, 3)
    with torch.no_grad():
        before = network(x, spacing)
        x[:, 1] += 1 + torch.randn(14, 16, 12)
        after = network(x, spacing)
    assert before.voxels.shape == (1, 1, 14, 16, 12)
    assert not torch.equal(before.voxels, after.voxels)
    assert torch.equal(before.features[:, :48], after.features[:, :48])  # the tokens' share
    assert not torch.equal(before.features[:, 48:], after.features[:, 48:])
    detector = build_lesion_network(config, voxels=True, patch=False)
    assert detector(x, spacing).patch is None


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="norm"):
        norm("instance", 8)
    with pytest.raises(ConfigError, match="conv or encoder"):
        build_lesion_network(LesionNetworkConfig(kind="unet"), voxels=True, patch=False)
