import pytest
import torch

from fmct.errors import ConfigError
from fmct.models.decoder import DenseDecoder, GroupNorm, group_norm, strides, upsampling_steps
from tests.models.networks import noise


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        (8, [(2, 2, 2)] * 3),
        (12, [(3, 3, 3), (2, 2, 2), (2, 2, 2)]),
        ((4, 16, 16), [(2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)]),
        ((2, 4, 4), [(2, 2, 2), (1, 2, 2)]),
        ((5, 14, 1), [(5, 7, 1), (1, 2, 1)]),
        (17, [(17, 17, 17)]),
        (1, [(1, 1, 1)]),
    ],
)
def test_steps_multiply_to_the_patch_and_end_with_the_fine_axes(patch, expected) -> None:  # type: ignore[no-untyped-def]
    assert upsampling_steps(patch) == expected
    whole = (patch,) * 3 if isinstance(patch, int) else patch
    assert strides(expected)[0] == whole
    assert strides(expected)[-1] == (1, 1, 1)


@pytest.mark.parametrize(
    ("patch", "neck"),
    [(8, (4, 4, 4)), (16, (4, 4, 4)), (12, (4, 4, 4)), ((4, 16, 16), (1, 4, 4)), ((2, 4, 4), (2, 4, 4))],
)
def test_the_neck_is_the_coarsest_map_of_stride_4_at_most(patch, neck) -> None:  # type: ignore[no-untyped-def]
    decoder = DenseDecoder(8, patch, in_channels=1, taps=1, width=16, stem_channels=4)
    assert decoder.neck_stride == neck
    whole = (patch,) * 3 if isinstance(patch, int) else patch
    logits, map_ = decoder([noise(1, 8, 1, 2, 1)], noise(1, 1, whole[0], 2 * whole[1], whole[2]))
    assert logits.shape == (1, 1, whole[0], 2 * whole[1], whole[2])
    assert map_.shape == (1, decoder.neck_channels, whole[0] // neck[0], 2 * whole[1] // neck[1], whole[2] // neck[2])


def test_one_token_of_one_volume_can_be_trained_on() -> None:
    decoder = DenseDecoder(8, 4, in_channels=2, taps=2, width=16, stem_channels=4).train()
    logits, neck = decoder([noise(1, 8, 1, 1, 1)] * 2, noise(1, 2, 4, 4, 4))
    (logits.sum() + neck.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in decoder.parameters())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_the_norm_is_torchs_and_leaves_memory_as_it_lies(kind: torch.dtype, layout: torch.memory_format) -> None:
    x = (3 + noise(2, 8, 5, 6, 7)).to(kind).to(memory_format=layout)
    norm = GroupNorm(4, 8)
    expected = torch.nn.functional.group_norm(x.float(), 4)
    found = norm(x)
    assert found.dtype == kind
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.02 if kind == torch.bfloat16 else 1e-5)


def test_groups_divide_the_channels_and_hold_two_at_least() -> None:
    for channels in range(4, 132, 4):
        groups = int(group_norm(channels)[1]["num_groups"])  # type: ignore[call-overload]
        assert channels % groups == 0
        assert channels // groups >= 2
    with pytest.raises(ConfigError, match="multiples of 4"):
        DenseDecoder(8, 4, in_channels=1, width=30)
    with pytest.raises(ConfigError, match="multiples of 4"):
        DenseDecoder(8, 4, in_channels=1, width=8, stem_channels=16)
