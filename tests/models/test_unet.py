import pytest
import torch

from fmct.errors import ConfigError
from fmct.models.unet import ConvDecoder, ConvEncoder, UNetConfig, build_unet, dyn_unet
from tests.models.networks import noise

FILTERS, STRIDES = [4, 8, 8, 12], [[1, 2, 2], [2, 2, 2], [2, 2, 2]]


def test_it_is_monais_network_bit_for_bit() -> None:
    torch.manual_seed(1)
    reference = dyn_unet(2, 3, FILTERS, [(1, 2, 2), (2, 2, 2), (2, 2, 2)])
    encoder = ConvEncoder(2, filters=FILTERS, strides=STRIDES)
    decoder = ConvDecoder(encoder, outputs=3)
    parts = reference.state_dict()
    encoder.load_state_dict({name: parts[name] for name in encoder.state_dict()})
    decoder.load_state_dict({name: parts[name] for name in decoder.state_dict()})
    x = noise(2, 2, 8, 16, 16)
    assert torch.equal(decoder(encoder(x))[0], reference(x))
    unique = {name for name in parts if not name.startswith("skip_layers")}
    assert set(encoder.state_dict()) | set(decoder.state_dict()) == unique, "no weight is missing or has two names"


@pytest.mark.parametrize("size", [(8, 16, 16), (5, 9, 11), (1, 1, 1)])
def test_any_size_comes_back(size: tuple[int, int, int]) -> None:
    model = build_unet(UNetConfig(filters=FILTERS, strides=STRIDES), in_channels=1, outputs=2).train()
    output = model(noise(1, 1, *size))
    assert output.logits.shape == (1, 2, *size)
    assert torch.isfinite(output.logits).all()
    assert model.tap_strides == [(1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8)]
    assert model.neck_stride == (2, 4, 4)
    for map_, stride in zip(output.taps, model.tap_strides, strict=True):
        assert [n * s for n, s in zip(map_.shape[2:], stride, strict=True)] == list(
            torch.Size(n * s for n, s in zip(output.neck.shape[2:], model.neck_stride, strict=True))
        )


def test_the_phase_reaches_the_features() -> None:
    """A shift behind the last norm of the first block is not taken away by the next one."""
    encoder, x = ConvEncoder(1, filters=FILTERS, strides=STRIDES), noise(1, 1, 8, 16, 16)
    plain, zero = encoder(x), encoder(x, torch.zeros(4))
    assert all(torch.equal(a, b) for a, b in zip(plain, zero, strict=True))
    moved = encoder(x, torch.tensor([0.5, -0.5, 0.0, 1.0]))
    assert (moved[-1] - plain[-1]).abs().max() > 0.05


def test_misfits_are_explained() -> None:
    with pytest.raises(ConfigError, match="three or more filters"):
        ConvEncoder(1, filters=[4, 8])
    with pytest.raises(ConfigError, match="one stride between"):
        ConvEncoder(1, filters=[4, 8, 8], strides=[2])
