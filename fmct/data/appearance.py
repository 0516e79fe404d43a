"""How a view looks: intensity parameters, sampled once, and their application to rendered values."""

from dataclasses import dataclass

import numpy as np
import torch

from fmct.data.view_config import STRENGTHS, AppearanceConfig


@dataclass(frozen=True)
class Appearance:
    """Sampled intensity changes; the defaults change nothing.

    intensity' = intensity · gain + shift; blur: sigma in output voxels; ringing: share of frequencies kept; noise:
    standard deviation in the scan's units, drawn from `noise_key`; gamma and histogram act on window values in
    [0, 1]: v^gamma, and the piecewise-linear curve through equally spaced knots with these heights.
    """

    gain: float = 1.0
    shift: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    noise_key: int = 0
    gamma: float = 1.0
    histogram: tuple[float, ...] = ()
    ringing: float = 1.0
    sharpen: float = 0.0

    @property
    def linear(self) -> bool:
        """Whether the view is a linear function of the voxels up to its windows, noise and curves apart."""
        return self.noise == 0 and self.gamma == 1 and not self.histogram and self.sharpen == 0


def sample_appearance(config: AppearanceConfig, random: np.random.Generator, *, noise_key: int) -> Appearance:
    """Return intensity changes drawn from `random`, which advances by the same amount whatever comes out."""
    uniform = random.random((len(STRENGTHS) + 1, 2))
    strengths: dict[str, float] = {}
    for name, (happens, strength) in zip(STRENGTHS, uniform[1:], strict=True):
        chance = getattr(config, name)
        if name not in config.one_of and happens < chance.probability:
            strengths[name] = float(chance.range[0] + strength * (chance.range[1] - chance.range[0]))
    if config.one_of and uniform[0, 0] < config.one_of_probability:
        name = config.one_of[int(uniform[0, 1] * len(config.one_of))]
        low, high = getattr(config, name).range
        strengths[name] = float(low + uniform[1 + STRENGTHS.index(name), 1] * (high - low))
    knots = round(strengths.get("histogram", 0))
    heights = random.random(32)
    return Appearance(
        gain=strengths.get("gain", 1.0),
        shift=strengths.get("shift_hu", 0.0),
        blur=strengths.get("blur", 0.0),
        noise=strengths.get("noise_hu", 0.0),
        noise_key=noise_key,
        gamma=strengths.get("gamma", 1.0),
        histogram=_curve(heights[:knots]) if knots > 2 else (),
        ringing=strengths.get("ringing", 1.0),
        sharpen=strengths.get("sharpen", 0.0),
    )


def apply_curves(values: torch.Tensor, appearance: Appearance) -> torch.Tensor:
    """Return window values in [0, 1] after the histogram curve and gamma, in place where that is possible."""
    if appearance.histogram:
        heights = torch.tensor(appearance.histogram, dtype=values.dtype, device=values.device)
        place = values.clamp(0, 1) * (len(heights) - 1)
        lower = place.floor().clamp_(max=len(heights) - 2)
        index = lower.to(torch.int64)
        values = torch.lerp(heights[index], heights[index + 1], place - lower)
    return values.clamp_(min=0).pow_(appearance.gamma) if appearance.gamma != 1 else values


def _curve(uniform: np.ndarray) -> tuple[float, ...]:
    """Return rising heights of a curve on [0, 1] with fixed ends: each inner knot moves between its neighbours."""
    heights = np.linspace(0, 1, len(uniform))
    for i in range(1, len(heights) - 1):
        heights[i] = heights[i - 1] + uniform[i] * (heights[i + 1] - heights[i - 1])
    return tuple(float(h) for h in heights)
