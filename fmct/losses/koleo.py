"""KoLeo: spread the features of different images (Sablayrolles et al., "Spreading vectors", 2019)."""

import torch
from torch import Tensor
from torch.nn import functional

from fmct import distributed
from fmct.losses.precision import as_float, full_precision


def koleo_loss(features: Tensor, *, eps: float = 1e-3) -> Tensor:
    """Return the Kozachenko-Leonenko estimate −mean log d of this rank's (B, E) features against those of all ranks.

    d is the distance of an L2-normalised feature to its nearest neighbour among the W·B of all ranks, smoothed to
    √(d² + eps²): equal features (a volume drawn twice) cost log 1/eps and push with at most 1/(2 eps), never more.
    B is the same on every rank; pass one view per image. Fewer than two images in all give 0 with a gradient path.
    """
    with full_precision(features):
        own = functional.normalize(as_float(features), dim=-1, eps=1e-8)
        everyone = distributed.gather_with_gradient(own)
        if len(everyone) < 2:
            return 0.0 * features.sum()
        with torch.no_grad():
            similarity = own @ everyone.T
            offset = distributed.rank() * len(own)
            rows = torch.arange(len(own), device=own.device)
            similarity[rows, rows + offset] = -torch.inf
            neighbour = similarity.argmax(dim=1)
        squared = (own - everyone[neighbour]).square().sum(-1)
        return -0.5 * torch.log(squared + eps * eps).mean()
