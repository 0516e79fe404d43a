import pytest
import torch

from fmct.errors import ConfigError
from fmct.models.decoder import DenseDecoder, strides, upsampling_steps
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


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 4"):
        DenseDecoder(8, 4, in_channels=1, width=30)
    with pytest.raises(ConfigError, match="multiples of 4"):
        DenseDecoder(8, 4, in_channels=1, width=8, stem_channels=16)
