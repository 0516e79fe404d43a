"""VoxelFM: the teacher of its published checkpoint (`vitb_3d/checkpoints/99999.pth`).

A ViT with patches of 14³, four registers, LayerScale and rotary positions whose coordinates run from −1 to 1 over each
axis of the input. It turns neighbouring pairs of dimensions, each axis in its own third of a head; fmct turns halves,
so the rows of queries and keys are put in that order, which leaves every product of the two as it is. Input is HU on
isotropic voxels, (HU + 573.8) / 461.3. Facts: rmaguado/VoxelFM at fba41a3 (Apache-2.0); no code of it is used.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fmct.errors import WeightsError
from fmct.models.adapters import checkpoint
from fmct.models.adapters.adapted import AdaptedEncoder, adapted
from fmct.models.encoder import EncoderConfig
from fmct.preprocess import InputSpec, Preprocessing
from fmct.series_steps import SeriesSteps
from fmct.windows import Window

HEADS = 12
BASE = 100.0  # of the rotary periods
FINEST_MM = 0.75
WINDOW = Window(-1000, 1900, "voxelfm", shift=-573.8, scale=461.3)
_HEAD_MODULES = ("dino_head", "ibot_head")
_PERIODS = "rope_embed.periods"
BLOCK = (
    *(f"{norm}.{part}" for norm in ("norm1", "norm2") for part in ("weight", "bias")),
    *(f"{linear}.{part}" for linear in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for part in ("weight", "bias")),
    "ls1.gamma",
    "ls2.gamma",
)


def load_voxelfm(path: str | Path) -> AdaptedEncoder:
    """Return VoxelFM's teacher with the preprocessing of its own inference: isotropic, trimmed to whole patches.

    The spacing of the input is the series' finest, at least 0.75 mm, and the position of a token is its share of the
    input, so `spacing` plays no part in a forward pass. Raises WeightsError on any tensor missing, unexpected or of
    another shape.
    """
    where = str(path)
    tree = checkpoint.read_checkpoint(path)
    inner = tree if checkpoint.is_state_dict(tree) else tree.get("teacher")
    if not isinstance(inner, Mapping):
        raise WeightsError(f"{where}: expected a dictionary with teacher, found {', '.join(list(tree)[:6])}.")
    tensors, dropped = checkpoint.without_heads(checkpoint.stripped(inner, where), _HEAD_MODULES)
    config = _configuration(tensors, where)
    weights = checkpoint.take_by_name(
        tensors, _names(config), where, hint="Expected the teacher of VoxelFM's published checkpoint."
    )
    _check_periods(weights.pop(_PERIODS), config, where)
    weights["mask_token"] = weights["mask_token"][None]
    order = half_order(config.embed_dim or 0, HEADS)
    for layer in range(config.depth or 0):
        for part in ("weight", "bias"):
            name = f"blocks.{layer}.attn.qkv.{part}"
            weights[name] = weights[name][order]
    facts = {"layout": "voxelfm", "source": "teacher", "project": "rmaguado/VoxelFM", "heads_left_out": dropped}
    return adapted(weights, config, 1, _preprocessing(config), facts, where)


def half_order(width: int, heads: int) -> Tensor:
    """Return (3 · width,) rows of qkv such that halves of a head turn as pairs (2k, 2k + 1) of each third did."""
    head = width // heads
    pairs = torch.arange(head).reshape(head // 2, 2)  # pair k of axis a is row a · head / 6 + k
    within = torch.cat([pairs[:, 0], pairs[:, 1]])
    rows = (torch.arange(heads)[:, None] * head + within).flatten()
    return torch.cat([rows, width + rows, 2 * width + torch.arange(width)])


def _configuration(tensors: Mapping[str, Tensor], where: str) -> EncoderConfig:
    width, channels, *patch = checkpoint.shape_of(tensors, "patch_embed.proj.weight", 5, where)
    registers = checkpoint.shape_of(tensors, "register_tokens", 3, where)[1] if "register_tokens" in tensors else 0
    hidden = checkpoint.shape_of(tensors, "blocks.0.mlp.fc1.weight", 2, where)[0]
    if channels != 1 or width % (6 * HEADS):
        raise WeightsError(
            f"{where}: {channels} channels and {width} features; VoxelFM has one channel and a multiple of {6 * HEADS}."
        )
    return EncoderConfig(
        embed_dim=width,
        depth=checkpoint.block_names(tensors, where),
        num_heads=HEADS,
        patch_size=list(patch),
        num_registers=registers,
        mlp_ratio=hidden / width,
        rope_unit="crop",
        rope_min_period_mm=1.0,
        rope_max_period_mm=BASE ** (1 - 6 * HEADS / width),
        norm_eps=1e-5,
        final_norm_eps=1e-5,
    )


def _names(config: EncoderConfig) -> dict[str, str]:
    plain = ["cls_token", "mask_token", "norm.weight", "norm.bias", _PERIODS]
    plain += ["register_tokens"] if config.num_registers else []
    names = {name: name for name in plain}
    names |= {f"patch_embed.proj.{part}": f"patch_embed.{part}" for part in ("weight", "bias")}
    for layer in range(config.depth or 0):
        names |= {f"blocks.{layer}.{part}": f"blocks.{layer}.{part}" for part in BLOCK}
    return names


def _check_periods(found: Tensor, config: EncoderConfig, where: str) -> None:
    """Raise WeightsError unless the rotary periods in the file are those that the model will use."""
    count = (config.embed_dim or 0) // HEADS // 6
    wanted = BASE ** (torch.arange(count) / count)
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-4):
        raise WeightsError(
            f"{where}: {_PERIODS} are {[round(p, 3) for p in found.flatten().tolist()[:4]]} …, and VoxelFM's rise "
            f"from 1 with base {BASE:g}: another run's positions."
        )


def _preprocessing(config: EncoderConfig) -> Preprocessing:
    z, y, x = config.patch_size
    steps = SeriesSteps(clip=(WINDOW.low, WINDOW.high), isotropic_mm=FINEST_MM)
    spec = InputSpec("whole", (z, y, x), None, skip_air=0.0, pool="mean", steps=steps)
    return Preprocessing((WINDOW,), spec)
