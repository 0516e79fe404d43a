"""From tokens to one vector and from that vector to logits: norms, the linear head, attentive pooling."""

import torch
from timm.layers.norm import LayerNorm
from torch import Tensor, nn
from torch.nn import functional

from fmct import distributed
from fmct.errors import ConfigError
from fmct.precision import without_autocast

NORMS = ("none", "batch", "layer")


class BatchStandardisation(nn.BatchNorm1d):
    """BatchNorm1d without weight and bias, in float32, over the rows of all ranks: all keep the same averages."""

    def __init__(self, features: int) -> None:
        super().__init__(features, affine=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return standardised (M, E) rows; in training by their own mean and variance, M the same on every rank."""
        with without_autocast(input.device):
            rows = input if input.dtype == torch.float64 else input.float()
            if not self.training:
                return super().forward(rows)
            every = distributed.gather_with_gradient(rows)
            if len(every) < 2:
                raise ConfigError(
                    "batch standardisation in training needs at least two rows, got one: take a batch of two or more "
                    "samples, or the head's norm 'layer' or 'none'."
                )
            start = distributed.rank() * len(rows)
            return super().forward(every)[start : start + len(rows)]


def feature_norm(kind: str, features: int) -> nn.Module:
    """Return the norm `kind` (none, batch, layer) of (M, `features`) rows. Raises ConfigError for another."""
    if kind == "batch":
        return BatchStandardisation(features)
    if kind == "layer":
        return LayerNorm(features, eps=1e-6)
    if kind != "none":
        raise ConfigError(f"head norm: expected one of {', '.join(NORMS)}, got {kind!r}.")
    return nn.Identity()


def pooling_heads(embed_dim: int) -> int:
    """Return how many attention heads pool `embed_dim` features: one per 64, or as many below that as divide them."""
    return next(heads for heads in range(max(embed_dim // 64, 1), 0, -1) if embed_dim % heads == 0)


class LogitLinear(nn.Linear):
    """The linear layer onto a volume's logits, in float32 whatever the autocast type.

    A bfloat16 has 8 bits: logits around .5 would lie .002 apart, around 4 .03, and patients tie who do not.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return (…, outputs) logits of (…, E) features."""
        with without_autocast(input.device):
            return super().forward(input if input.dtype == torch.float64 else input.float())


class LinearHead(nn.Module):
    """A linear layer on features, which `norm` may bring to one scale first. "batch" is FM-HCT's, without affine."""

    def __init__(self, embed_dim: int, outputs: int, *, norm: str = "none") -> None:
        super().__init__()
        self.norm = feature_norm(norm, embed_dim)
        self.linear = LogitLinear(embed_dim, outputs)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (M, outputs) logits of (M, E) features."""
        return self.linear(self.norm(x))


class AttentivePooling(nn.Module):
    """One learned query attends to all tokens: keys and values are linear in the token, without bias.

    As in FM-HCT's attentive head, with `norm="batch"` on the tokens; there is no output projection, since a linear
    head follows.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, norm: str = "none") -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ConfigError(f"attentive pooling: {embed_dim} features do not divide into {num_heads} heads.")
        self.num_heads = num_heads
        self.norm = feature_norm(norm, embed_dim)
        self.query = nn.Parameter(torch.empty(num_heads, embed_dim // num_heads))
        self.key_value = nn.Linear(embed_dim, 2 * embed_dim, bias=False)
        nn.init.trunc_normal_(self.query, std=0.02)
        nn.init.trunc_normal_(self.key_value.weight, std=0.02)

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return pooled (B, E) and the weights (B, heads, N) of (B, N, E) tokens; each head's weights sum to one.

        valid: (B, N) bool, tokens that may be attended to. Raises ConfigError for a sample without a valid token.
        """
        if valid is not None and not bool(valid.any(1).all()):
            raise ConfigError("attentive pooling: a sample has no valid token.")
        rows = self.norm(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        key_value = self.key_value(rows).unflatten(-1, (2, self.num_heads, -1))
        key, value = key_value.unbind(2)  # (B, N, heads, d)
        scores = torch.einsum("bnhd,hd->bhn", key, self.query.to(key.dtype)).float() * key.shape[-1] ** -0.5
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None], float("-inf"))
        weights = functional.softmax(scores, dim=-1)
        pooled = torch.einsum("bhn,bnhd->bhd", weights.to(value.dtype), value)
        return pooled.flatten(1), weights
