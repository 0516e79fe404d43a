"""What a downstream network says of a batch of windows, whatever its own output type."""

from dataclasses import dataclass
from typing import Any

import torch

from fmct.errors import ArtefactError
from fmct.shapes import Triple

_NAMES = ("logits", "classification", "segmentation", "attention", "features")


@dataclass(frozen=True)
class WindowOutput:
    """Logits of B windows of T targets.

    classification: (B, T). segmentation: (B, T, D, H, W). attention: (B, gd, gh, gw), non-negative. features: (B, E'),
    what the classification comes from. Each is None where the network does not give it; one of the first two is there.
    """

    classification: torch.Tensor | None
    segmentation: torch.Tensor | None
    attention: torch.Tensor | None
    features: torch.Tensor | None = None


def window_output(output: Any, grid: Triple | None) -> WindowOutput:
    """Return the WindowOutput of a network's own output: a tensor, or something with named tensors, or with an `nct`.

    `logits` of five axes are a segmentation, of two a classification; `segmentation` and `classification` are what
    they say. `attention` over N tokens, (B, N) or (B, heads, N) whose heads are averaged, is folded onto the token
    `grid` (z, y, x) and left out where it does not fit.
    """
    output = getattr(output, "nct", output)
    named = {name: getattr(output, name, None) for name in _NAMES}
    logits = output if isinstance(output, torch.Tensor) else named["logits"]
    classification, segmentation = named["classification"], named["segmentation"]
    if isinstance(logits, torch.Tensor):
        if logits.ndim == 5:
            segmentation = logits
        else:
            classification = logits
    if classification is None and segmentation is None:
        raise ArtefactError(
            f"the network's output ({type(output).__name__}) holds neither logits nor classification nor segmentation."
        )
    return WindowOutput(classification, segmentation, _folded(named["attention"], grid), named["features"])


def _folded(attention: Any, grid: Triple | None) -> torch.Tensor | None:
    if not isinstance(attention, torch.Tensor) or grid is None or attention.ndim not in (2, 3):
        return None
    attention = attention.mean(dim=1) if attention.ndim == 3 else attention
    z, y, x = grid
    return attention.reshape(-1, z, y, x) if attention.shape[1] == z * y * x else None
