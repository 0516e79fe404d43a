"""Slow, obvious versions of what fmct.models computes: loops over tokens, axes and frequencies."""

import math

import torch
from torch import Tensor

from fmct.models.vision_transformer import VisionTransformer


def head_ct_sincos(grid: tuple[int, int, int], dim: int) -> Tensor:
    """Return (N, dim) vectors [sin w, cos w, sin h, cos h, sin d, cos d] with h, w, d the first, second, third axis."""
    count = dim // 6
    rows = []
    for h in range(grid[0]):
        for w in range(grid[1]):
            for d in range(grid[2]):
                row = []
                for coordinate in (w, h, d):
                    row += [math.sin(coordinate * 10000 ** (-k / count)) for k in range(count)]
                    row += [math.cos(coordinate * 10000 ** (-k / count)) for k in range(count)]
                rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def rotary_angles(
    grid: tuple[int, int, int], patch_mm: tuple[float, float, float], head_dim: int, low: float, high: float
) -> Tensor:
    """Return (N, head_dim / 2) angles in radians, from patch centres in mm relative to the crop's centre."""
    count = head_dim // 6
    periods = [low * (high / low) ** (k / (count - 1)) for k in range(count)]
    rows = []
    for z in range(grid[0]):
        for y in range(grid[1]):
            for x in range(grid[2]):
                row = []
                for index, n, size in zip((z, y, x), grid, patch_mm, strict=True):
                    centre = (index + 0.5) * size - n * size / 2
                    row += [2 * math.pi * centre / period for period in periods]
                rows.append(row + [0.0] * (head_dim // 2 - 3 * count))
    return torch.tensor(rows, dtype=torch.float64)


def turn(vector: Tensor, angles: Tensor) -> Tensor:
    """Return a (d,) vector whose planes (j, j + d / 2) are turned by (d / 2,) angles."""
    half = vector.shape[0] // 2
    out = vector.clone()
    for j in range(half):
        c, s = math.cos(angles[j]), math.sin(angles[j])
        out[j] = c * vector[j] - s * vector[j + half]
        out[j + half] = s * vector[j] + c * vector[j + half]
    return out


def one_block(encoder: VisionTransformer, layer: int, tokens: Tensor, angles: Tensor | None) -> Tensor:
    """Return (T, E) tokens of one crop after a block, by the textbook; `angles` (T, head_dim / 2)."""
    block = encoder.blocks[layer]
    heads, size = block.attn.num_heads, block.attn.head_dim
    qkv = block.attn.qkv(block.norm1(tokens)).reshape(len(tokens), 3, heads, size)
    outs = []
    for head in range(heads):
        q, k, v = qkv[:, 0, head], qkv[:, 1, head], qkv[:, 2, head]
        if angles is not None:
            q = torch.stack([turn(q[t], angles[t]) for t in range(len(tokens))])
            k = torch.stack([turn(k[t], angles[t]) for t in range(len(tokens))])
        outs.append(torch.softmax(q @ k.T / math.sqrt(size), dim=-1) @ v)
    tokens = tokens + block.ls1(block.attn.proj(torch.cat(outs, dim=-1)))
    return tokens + block.ls2(block.mlp(block.norm2(tokens)))
