"""Where a decision comes from: class activation maps, for display."""

import torch
from torch import Tensor

from fmct.errors import ConfigError


def class_activation_map(logits: Tensor, features: Tensor, *, output: int = 0) -> Tensor:
    """Return (B, d, h, w): the share of each cell of `features` (B, C, d, h, w) in one of the `logits` (B, outputs).

    Σ over channels of feature × gradient at the same cell (HiResCAM; Draelos and Carin 2020), not rectified. Behind a
    global mean and a linear layer this is the class activation map of Zhou et al. 2016 divided by the number of cells.
    `logits` must come from this very tensor, with gradients on. Raises ConfigError otherwise.
    """
    if not logits.requires_grad or not features.requires_grad:
        raise ConfigError(
            "class activation map: logits without a gradient to the features. Run the network outside of no_grad and "
            "inference_mode, on volumes with requires_grad_(True) when the encoder is frozen."
        )
    gradient = torch.autograd.grad(logits[:, output].sum(), features, retain_graph=True)[0]
    return (gradient * features).sum(1).detach()
