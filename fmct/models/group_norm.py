"""Group norm with its activation, for maps at full resolution: on a CPU it reads them twice and writes them once.

torch's own reads and writes such a map nine times where channels lie last in bfloat16 (it wants them first, so the map
is brought there and back, and the activation passes over it again), and that is what it costs.
"""

from math import gcd

import torch
from monai.networks.layers.factories import Norm
from torch import Tensor, nn

SLOPE = 0.01  # of the leaky ReLU: MONAI's blocks
_LANES = 256  # numbers that lie side by side for the kernels, whatever the channels: with 8 they fill half a register
_ROWS = 4096  # of so many numbers, in bfloat16 2 MB: about what a core's second-level cache holds
_NAME = "fmct_group_act"


class GroupNormAct(nn.GroupNorm):
    """torch's group norm, then a leaky ReLU of slope SLOPE."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised and activated (B, C, D, H, W), as it lies in memory."""
        if not _lies_last(input):
            return nn.functional.leaky_relu_(super().forward(input), SLOPE)
        if torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad):
            there = super().forward(input.contiguous())  # a third of the time that it takes as it lies
            return nn.functional.leaky_relu_(there.contiguous(memory_format=torch.channels_last_3d), SLOPE)
        output = torch.empty_like(input)
        for volume, result in zip(input, output, strict=True):
            self._by_rows(_rows(volume), _rows(result))
        return output

    def _by_rows(self, rows: Tensor, out: Tensor) -> None:
        """Write one volume's rows (of `_rows`), normalised and activated, to `out`."""
        copies = rows.shape[1] // self.num_channels
        mean, variance = (
            values.repeat_interleave(self.num_channels // self.num_groups).repeat(copies)
            for values in self._moments_of_groups(*_moments(rows))
        )
        scale, shift = (values.float().repeat(copies) for values in (self.weight, self.bias))
        for first in range(0, rows.shape[2], _ROWS):
            part = slice(first, first + _ROWS)
            normed = nn.functional.batch_norm(rows[:, :, part], mean, variance, scale, shift, eps=self.eps)
            torch.ops.aten.leaky_relu.out(normed, SLOPE, out=out[:, :, part])

    def _moments_of_groups(self, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
        """Return (mean, variance), each (groups,), of those of the lanes, each (copies · channels,)."""
        each = [lanes.view(-1, self.num_groups, self.num_channels // self.num_groups) for lanes in (means, variances)]
        mean = each[0].mean(dim=(0, 2), keepdim=True)
        return mean.flatten(), (each[1] + (each[0] - mean) ** 2).mean(dim=(0, 2))


def group_norm_act(channels: int) -> tuple[str, dict[str, object]]:
    """Return MONAI's name of the norm with its activation: groups of at least two channels.

    Instance norm, groups of one channel, would take away each channel's mean over the crop and with it what HU a
    crop has as a whole; and it is undefined on a map of one voxel.
    """
    return (_NAME, {"num_groups": gcd(8, channels // 2), "affine": True})


def _lies_last(input: Tensor) -> bool:
    """Return whether a map's channels lie last, in bfloat16 on a CPU."""
    last = input.is_contiguous(memory_format=torch.channels_last_3d) and not input.is_contiguous()
    return last and input.device.type == "cpu" and input.dtype == torch.bfloat16


def _rows(volume: Tensor) -> Tensor:
    """Return one volume (C, D, H, W) of channels that lie last as (1, lanes, rows, 1), a view of the same kind."""
    channels, voxels = len(volume), volume[0].numel()
    copies = gcd(voxels, max(1, _LANES // channels))
    table = volume.permute(1, 2, 3, 0).view(voxels // copies, copies * channels)
    return table.view(1, len(table), 1, -1).permute(0, 3, 1, 2)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return float32 (mean, variance), each (lanes,), of rows (1, lanes, rows, 1), by batch norm's own kernel."""
    lanes = rows.shape[1]
    running = torch.zeros(lanes), torch.ones(lanes)  # left alone; without float32 ones the result is bfloat16
    mean, variance = torch.batch_norm_update_stats(rows, running[0], running[1], 0.0)
    return mean, variance


Norm.add_factory_class(_NAME, GroupNormAct)
