"""Multiple-instance learning: one decision from the many tiles of a series."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.models.heads import init_linears
from fmct.models.pooling import LogitLinear


class MilHead(nn.Module):
    """Gated attention over the rows of a bag (Ilse et al. 2018, equation 9), then a linear layer.

    A row's weight is softmax over its bag of w · (tanh(V h) ⊙ σ(U h)); a bag is the weighted mean of its rows, so that
    its size plays no part. attention=False weights the rows of a bag alike: the mean.
    """

    def __init__(self, embed_dim: int, outputs: int, hidden: int = 128, *, attention: bool = True) -> None:
        super().__init__()
        self.attends = attention
        if attention:
            self.value = nn.Linear(embed_dim, hidden)
            self.gate = nn.Linear(embed_dim, hidden)
            self.score = nn.Linear(hidden, 1)
        self.linear = LogitLinear(embed_dim, outputs)
        init_linears(self)

    def forward(self, rows: Tensor, bags: Tensor, num_bags: int) -> tuple[Tensor, Tensor]:
        """Return logits (num_bags, outputs) and weights (M,) of (M, E) rows; `bags` (M,) int64 says whose a row is.

        The weights of a bag sum to one. Raises ConfigError for a bag without rows or a number outside the bags.
        """
        if bags.shape != rows.shape[:1] or bags.dtype != torch.int64:
            raise ConfigError(f"bags: expected ({len(rows)},) int64, got {tuple(bags.shape)} of {bags.dtype}.")
        if len(bags) and (int(bags.min()) < 0 or int(bags.max()) >= num_bags):
            raise ConfigError(f"bags: expected numbers from 0 to {num_bags - 1}.")
        missing = (torch.bincount(bags, minlength=num_bags) == 0).nonzero().flatten().tolist()
        if missing:
            raise ConfigError(f"every bag needs at least one row; bags {missing[:10]} have none.")
        if self.attends:
            score = self.score(torch.tanh(self.value(rows)) * torch.sigmoid(self.gate(rows)))[:, 0].float()
        else:
            score = torch.zeros(len(rows), dtype=torch.float32, device=rows.device)
        weights = segment_softmax(score, bags, num_bags)
        pooled = torch.zeros(num_bags, rows.shape[1], dtype=torch.float32, device=rows.device)
        pooled = pooled.index_add(0, bags, weights[:, None] * rows.float())
        return self.linear(pooled), weights


def segment_softmax(scores: Tensor, segments: Tensor, count: int) -> Tensor:
    """Return (M,) weights: softmax of (M,) scores within each of `count` segments."""
    index = functional.one_hot(segments, count).bool()
    logsum = torch.where(index.T, scores[None], float("-inf")).logsumexp(1)
    return (scores - logsum[segments]).exp()
