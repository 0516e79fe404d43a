"""Checkpoints in published layouts, in tiny."""

import torch
from torch import Tensor

Weights = dict[str, Tensor]
WIDTH, PATCH, SIDE = 48, 4, 3


def randomly(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def fmhct(*, bias: bool = False, registers: int = 0, channels: int = 3) -> Weights:
    """Return FM-HCT's released layout, its own names, at a width of 48 and patches of 4³."""
    e = WIDTH
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, e),
        "patch_embedding.position_embeddings": (1, SIDE**3, e),
        "patch_embedding.patch_embeddings.weight": (e, channels, PATCH, PATCH, PATCH),
        "patch_embedding.patch_embeddings.bias": (e,),
        "norm.weight": (e,),
        "norm.bias": (e,),
    }
    for layer in range(12):
        for name, shape in {
            "att_norm.weight": (e,), "att_norm.bias": (e,), "ffn_norm.weight": (e,), "ffn_norm.bias": (e,),
            "attn.qkv.weight": (3 * e, e), "attn.proj.weight": (e, e), "attn.proj.bias": (e,),
            "mlp.linear1.weight": (4 * e, e), "mlp.linear1.bias": (4 * e,),
            "mlp.linear2.weight": (e, 4 * e), "mlp.linear2.bias": (e,),
            **({"attn.qkv.bias": (3 * e,)} if bias else {}),
        }.items():  # fmt: skip
            shapes[f"blocks.{layer}.{name}"] = shape
    if registers:
        shapes["register_tokens"] = (1, registers, e)
    return randomly(shapes)
