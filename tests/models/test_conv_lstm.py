"""ConvLSTMs against a reference that loops over steps, channels and pixels, and what padding must not do."""

import numpy as np
import pytest
import torch

from fmct.errors import ConfigError
from fmct.models.conv_lstm import ConvLstm, SeriesReader


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def slow_conv(image: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Return the zero-padded correlation of (C, h, w) with (K, C, k, k), one output number at a time."""
    side = weight.shape[-1]
    padded = np.pad(image, ((0, 0), (side // 2,) * 2, (side // 2,) * 2))
    out = np.zeros((len(weight), *image.shape[1:]))
    for k, y, x in np.ndindex(out.shape):
        out[k, y, x] = (padded[:, y : y + side, x : x + side] * weight[k]).sum()
    return out if bias is None else out + bias[:, None, None]


def slow_lstm(layer: ConvLstm, steps: np.ndarray, *, backward: bool = False) -> np.ndarray:
    """Return the outputs of (T, C, h, w) steps by the equations of Shi et al. 2015, without peepholes."""
    weights = {name: value.detach().double().numpy() for name, value in layer.state_dict().items()}
    hidden, shape = layer.hidden, steps.shape[2:]
    state, cell = np.zeros((hidden, *shape)), np.zeros((hidden, *shape))
    outputs = np.zeros((len(steps), hidden, *shape))
    order = range(len(steps))[::-1] if backward else range(len(steps))
    for step in order:
        gates = slow_conv(steps[step], weights["input_gates.weight"], weights["input_gates.bias"])
        gates += slow_conv(state, weights["state_gates.weight"], None)
        let_in, keep, candidate, let_out = np.split(gates, 4)
        cell = sigmoid(keep) * cell + sigmoid(let_in) * np.tanh(candidate)
        state = sigmoid(let_out) * np.tanh(cell)
        outputs[step] = state
    return outputs


@pytest.mark.parametrize("backward", [False, True])
def test_a_layer_is_the_slow_reference(backward: bool) -> None:
    torch.manual_seed(0)
    layer = ConvLstm(2, 3).double()
    x = torch.randn(2, 4, 2, 3, 5, dtype=torch.float64)
    with torch.no_grad():
        found = layer(x, torch.ones(2, 4, dtype=torch.bool), backward=backward)
    for sample in range(2):
        expected = slow_lstm(layer, x[sample].numpy(), backward=backward)
        np.testing.assert_allclose(found[sample].numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_padding_changes_neither_logit_nor_gradient(direction: str) -> None:
    """S3: padded slabs, whatever they hold, leave the patient's logit as it is."""
    torch.manual_seed(1)
    reader = SeriesReader(6, reduce=4, hidden=3, layers=2, direction=direction)
    features = torch.randn(1, 3, 6, 4, 4)
    alone = reader(features)
    alone.sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in reader.named_parameters()}
    reader.zero_grad()
    longer = torch.cat([features, torch.full((1, 2, 6, 4, 4), torch.nan)], dim=1)
    batch = torch.cat([longer, torch.randn(1, 5, 6, 4, 4)])
    valid = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    logits = reader(batch, valid)
    torch.testing.assert_close(logits[:1], alone, rtol=1e-6, atol=1e-6)
    logits[0].sum().backward()
    for name, parameter in reader.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_direction_is_what_it_says() -> None:
    """A forward output knows nothing of later slabs, a backward one nothing of earlier ones."""
    torch.manual_seed(2)
    layer = ConvLstm(2, 3)
    x = torch.randn(1, 4, 2, 3, 3)
    changed = x.clone()
    changed[:, 2] += 1
    valid = torch.ones(1, 4, dtype=torch.bool)
    for backward, same in ((False, [True, True, False, False]), (True, [False, False, False, True])):
        before, after = layer(x, valid, backward=backward), layer(changed, valid, backward=backward)
        assert [bool(torch.equal(before[:, t], after[:, t])) for t in range(4)] == same


def test_reading_backward_is_reading_the_reversed_series_forward() -> None:
    torch.manual_seed(3)
    forward, backward = (SeriesReader(4, reduce=3, hidden=2, direction=way) for way in ("forward", "backward"))
    backward.load_state_dict(forward.state_dict())
    x = torch.randn(2, 5, 4, 3, 3)
    torch.testing.assert_close(forward(x.flip(1)), backward(x))
    assert not torch.allclose(forward(x), backward(x))


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="direction"):
        SeriesReader(4, direction="sideways")
    with pytest.raises(ConfigError, match="odd kernel"):
        ConvLstm(2, 2, kernel=2)
    reader = SeriesReader(4, reduce=3, hidden=2)
    with pytest.raises(ConfigError, match=r"\(B, T, 4, h, w\)"):
        reader(torch.zeros(1, 2, 3, 3, 3))
    with pytest.raises(ConfigError, match="a slab in every series"):
        reader(torch.zeros(2, 2, 4, 3, 3), torch.tensor([[True, True], [False, False]]))
