"""A recurrent reader of slabs in z order: convolutional LSTMs over their feature maps, then one decision a series.

ConvLSTM after Shi et al. 2015 (arXiv 1506.04214), equation 3, without the peepholes on the cell. Steps that only pad a
batch leave state and result as they were, whichever way the series is read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.models.pooling import LogitLinear

DIRECTIONS = ("forward", "backward", "both")


@dataclass(frozen=True)
class SeriesReaderConfig:
    """A series reader. See SeriesReader for what each key does."""

    reduce: int = 64
    hidden: int = 64
    layers: int = 2
    kernel: int = 3
    direction: str = "both"


class ConvLstm(nn.Module):
    """One convolutional LSTM layer, read one way. Gates are stacked as input, forget, cell, output.

    The forget gate's bias begins at 1 (Jozefowicz et al. 2015), so that early slabs are not forgotten before anything
    is learned.
    """

    def __init__(self, in_channels: int, hidden: int, *, kernel: int = 3) -> None:
        super().__init__()
        if kernel % 2 == 0 or min(in_channels, hidden, kernel) < 1:
            raise ConfigError(f"ConvLSTM: expected channels ≥ 1 and an odd kernel; got {in_channels, hidden, kernel}.")
        self.hidden = hidden
        self.input_gates = nn.Conv2d(in_channels, 4 * hidden, kernel, padding=kernel // 2)
        self.state_gates = nn.Conv2d(hidden, 4 * hidden, kernel, padding=kernel // 2, bias=False)
        nn.init.zeros_(self.input_gates.bias)  # type: ignore[arg-type]
        nn.init.ones_(self.input_gates.bias[hidden : 2 * hidden])  # type: ignore[index]

    def forward(self, x: Tensor, valid: Tensor, *, backward: bool = False) -> Tensor:
        """Return the (B, T, hidden, h, w) outputs of (B, T, C, h, w) steps; 0 where `valid` (B, T) bool is false.

        backward: steps are read from the last to the first; the output of a step then knows what lies behind it.
        """
        batch, steps = x.shape[:2]
        entering = self.input_gates(x.flatten(0, 1)).unflatten(0, (batch, steps))
        state = entering.new_zeros((batch, self.hidden, *x.shape[3:]))
        cell = state
        outputs: list[Tensor] = [state] * steps
        for step in reversed(range(steps)) if backward else range(steps):
            gates = entering[:, step] + self.state_gates(state)
            let_in, keep, candidate, let_out = gates.chunk(4, dim=1)
            new_cell = keep.sigmoid() * cell + let_in.sigmoid() * candidate.tanh()
            new_state = let_out.sigmoid() * new_cell.tanh()
            real = valid[:, step, None, None, None]
            cell, state = torch.where(real, new_cell, cell), torch.where(real, new_state, state)
            outputs[step] = torch.where(real, new_state, torch.zeros_like(new_state))
        return torch.stack(outputs, dim=1)


class SeriesReader(nn.Module):
    """One logit of a series from its slabs' feature maps, in z order.

    1 × 1 convolution and ReLU, ConvLSTM layers, the largest value over the real steps, mean over the map, linear.

    Args:
        in_channels: of a feature map.
        reduce: channels after the 1 × 1 convolution.
        hidden: channels of each layer's state, in each direction.
        layers: ConvLSTM layers.
        kernel: of the ConvLSTMs, odd.
        direction: "forward" (feet to head), "backward", or "both", whose outputs lie side by side.
        outputs: logits.

    Raises ConfigError for impossible settings.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        reduce: int = 64,
        hidden: int = 64,
        layers: int = 2,
        kernel: int = 3,
        direction: str = "both",
        outputs: int = 1,
    ) -> None:
        super().__init__()
        if direction not in DIRECTIONS or layers < 1:
            raise ConfigError(
                f"series reader: direction is one of {', '.join(DIRECTIONS)} and layers ≥ 1; got {direction!r} and "
                f"{layers}."
            )
        self.in_channels = in_channels
        self.direction = direction
        self.reduce = nn.Conv2d(in_channels, reduce, 1)
        ways = 2 if direction == "both" else 1
        widths = [reduce] + [ways * hidden] * layers
        self.layers = nn.ModuleList(
            nn.ModuleList(ConvLstm(width, hidden, kernel=kernel) for _ in range(ways)) for width in widths[:-1]
        )
        self.linear = LogitLinear(widths[-1], outputs)

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return (B, outputs) logits of (B, T, C, h, w) feature maps; valid (B, T) bool: which steps are slabs.

        What a padding step holds plays no part. Raises ConfigError for another shape, or a series without any slab.
        """
        if features.ndim != 5 or features.shape[2] != self.in_channels:
            raise ConfigError(
                f"series reader: expected features (B, T, {self.in_channels}, h, w), got {tuple(features.shape)}."
            )
        if valid is None:
            valid = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        if valid.shape != features.shape[:2] or not bool(valid.any(1).all()):
            raise ConfigError(
                f"series reader: expected valid {tuple(features.shape[:2])} with a slab in every series, got "
                f"{tuple(valid.shape)} with {valid.sum(1).tolist()}."
            )
        real = valid[:, :, None, None, None]
        x = functional.relu(self.reduce(torch.where(real, features, 0.0).flatten(0, 1)))
        x = x.unflatten(0, features.shape[:2])
        for pair in self.layers:
            x = torch.cat([layer(x, valid, backward=back) for layer, back in self._ways(pair)], dim=2)
        most = torch.where(real, x, -torch.inf).amax(1)
        return self.linear(most.mean((2, 3)))

    def _ways(self, pair: nn.Module) -> list[tuple[ConvLstm, bool]]:
        backward = [False, True] if self.direction == "both" else [self.direction == "backward"]
        return [(layer, back) for layer, back in zip(pair.children(), backward, strict=True)]  # type: ignore[misc]
