"""The transformer block, on a packed sequence: the tokens of every crop of every group in one (M, E) matrix.

Norms, projections and MLPs do not care which token belongs to which crop, so they run once on all M rows; attention
runs once per group of equally long crops.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp, SwiGLU
from timm.layers.norm import LayerNorm
from torch import Tensor, nn
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.models.rope import rotate

_MOST_TOKENS_BY_PRODUCTS = 1024  # 2 MB of weights a head


@dataclass(frozen=True)
class Packing:
    """How (M, E) rows split into groups: (crops, tokens per crop) of each."""

    groups: tuple[tuple[int, int], ...]

    @property
    def rows(self) -> list[int]:
        """Rows of each group."""
        return [crops * tokens for crops, tokens in self.groups]

    def spread(self, per_crop: Sequence[Tensor]) -> Tensor:
        """Return (M, …) rows from one (crops or 1, tokens or 1, …) tensor per group."""
        parts = [
            value.expand(crops, tokens, *value.shape[2:]).flatten(0, 1)
            for value, (crops, tokens) in zip(per_crop, self.groups, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def repeat(self, per_crop: Tensor) -> Tensor:
        """Return (…, M, 1) rows from (…, crops of all groups) values."""
        values = per_crop.split([crops for crops, _ in self.groups], dim=-1)
        parts = [
            value[..., None].expand(*value.shape, tokens).flatten(-2)
            for value, (_, tokens) in zip(values, self.groups, strict=True)
        ]
        return torch.cat(parts, dim=-1)[..., None]

    def split(self, rows: Tensor) -> list[Tensor]:
        """Return one (crops, tokens, …) tensor per group from (M, …) rows; no copies."""
        return [part.unflatten(0, group) for part, group in zip(rows.split(self.rows), self.groups, strict=True)]


class Attention(nn.Module):
    """Multi-head self-attention within each crop. As in timm, the rows of qkv are q, k, v, head-major."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(f"an embedding of {dim} does not divide into {num_heads} attention heads.")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, packing: Packing, rotary: Tensor | None) -> Tensor:
        """Return (M, E) attended rows; `rotary` is the (M, 2, head_dim) table (`rope.both_halves`)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        if rotary is not None:
            qkv = rotate(qkv, rotary)
        attended = []
        for group in packing.split(qkv):  # (crops, tokens, 3, heads, head_dim)
            q, k, v = group.permute(2, 0, 3, 1, 4).unbind(0)
            attended.append(attend(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1))
        return self.proj(attended[0] if len(attended) == 1 else torch.cat(attended))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q kᵀ / √d) v, (B, heads, tokens, d), of queries, keys and values of that shape.

    torch's fused kernel; but on a CPU in bfloat16 plain products, which with gradients take half its time at 217 tokens
    and a quarter at 28. Logits are then rounded to bfloat16, as by products under autocast anywhere: .4 % of an output,
    1.2 % where logits are as large as 70. Long sequences keep the kernel, which does not store the weights.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= _MOST_TOKENS_BY_PRODUCTS:
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
        return weights @ v
    return functional.scaled_dot_product_attention(q, k, v)


class Block(nn.Module):
    """Pre-norm transformer block: x + γ₁ · attention(norm(x)), then x + γ₂ · mlp(norm(x)).

    `layer_scale` is the initial γ, None for none. The SwiGLU MLP is 2/3 as wide, rounded up to a multiple of 8, and so
    has about as many parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        swiglu: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, init_values=layer_scale)
        self.norm2 = LayerNorm(dim, eps=norm_eps)
        width = mlp_width(dim, mlp_ratio, swiglu=swiglu)
        self.mlp = SwiGLU(dim, width) if swiglu else Mlp(dim, width)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, init_values=layer_scale)

    def forward(self, x: Tensor, packing: Packing, rotary: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Return (M, E) rows; `keep` (2, M, 1) holds the drop-path factors of the two branches, None for all ones."""
        x = _add(x, self.attn(self.norm1(x), packing, rotary), self.ls1, None if keep is None else keep[0])
        return _add(x, self.mlp(self.norm2(x)), self.ls2, None if keep is None else keep[1])


def mlp_width(dim: int, mlp_ratio: float, *, swiglu: bool) -> int:
    """Return the hidden width of a block's MLP."""
    if not swiglu:
        return int(dim * mlp_ratio)
    return -(-int(dim * mlp_ratio * 2 / 3) // 8) * 8


def _add(x: Tensor, branch: Tensor, scale: nn.Module, keep: Tensor | None) -> Tensor:
    """Return x + keep · γ · branch, in one pass over x."""
    if keep is not None:
        branch = branch * keep.to(branch.dtype)
    return torch.addcmul(x, branch, scale.gamma) if isinstance(scale, LayerScale) else x + branch
