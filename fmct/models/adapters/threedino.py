"""3DINO-ViT: the teacher of its published checkpoint, a DINOv2 ViT-L on 3D volumes.

Learned positions, of CLS too, which is added to the CLS token here; blocks kept in chunks under names `blocks.C.N.…`;
LayerScale. The axes of its arrays are Right, Anterior, Superior. Input is one channel between the 0.05th and 99.95th
percentile of the series, cropped to what lies above the lower one. Facts: AICONSlab/3DINO at 85bd443; weights
CC BY-NC-ND; no code of it is used.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fmct.errors import WeightsError
from fmct.models.adapters import checkpoint
from fmct.models.adapters.adapted import AdaptedEncoder, adapted
from fmct.models.adapters.voxelfm import BLOCK
from fmct.models.encoder import EncoderConfig
from fmct.preprocess import InputSpec, Preprocessing
from fmct.series_steps import SeriesSteps

HEAD_DIM = 64
PERCENTILES = (0.05, 99.95)
OFFSET = 0.1  # its positions are interpolated by (tokens + 0.1) / side
_HEAD_MODULES = ("dino_head", "ibot_head")
_CHUNKED = re.compile(r"blocks\.\d+\.(\d+)\.(.+)")


def load_3dino(path: str | Path, *, modality: str = "CT") -> AdaptedEncoder:
    """Return 3DINO's teacher with the preprocessing of its own evaluation, resized to the cube it was trained on last.

    112³ voxels after its high-resolution stage (a table of 7³ positions), 96³ before. modality: what it is given here;
    it was trained on MR, CT and PET alike. Raises WeightsError on any tensor missing, unexpected or of another shape.
    """
    where = str(path)
    tree = checkpoint.read_checkpoint(path)
    inner = tree if checkpoint.is_state_dict(tree) else tree.get("teacher")
    if not isinstance(inner, Mapping):
        raise WeightsError(f"{where}: expected a dictionary with teacher, found {', '.join(list(tree)[:6])}.")
    tensors, dropped = checkpoint.without_heads(checkpoint.stripped(inner, where), _HEAD_MODULES)
    tensors = _unchunked(tensors, where)
    config = _configuration(tensors, where)
    weights = checkpoint.take_by_name(
        tensors, _names(config), where, hint="Expected the teacher of 3DINO-ViT's published checkpoint."
    )
    positions = weights.pop("pos_embed")
    weights["cls_token"] = weights["cls_token"] + positions[:, :1]
    weights["positions.table"] = positions[:, 1:]
    weights["mask_token"] = weights["mask_token"][None]
    facts = {"layout": "3dino", "source": "teacher", "project": "AICONSlab/3DINO", "heads_left_out": dropped}
    return adapted(weights, config, 1, _preprocessing(config, modality), facts, where)


def _unchunked(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return tensors with `blocks.C.N.…` as `blocks.N.…`; a block keeps its own number in every chunk."""
    result: dict[str, Tensor] = {}
    for name, value in tensors.items():
        match = _CHUNKED.fullmatch(name)
        bare = f"blocks.{match[1]}.{match[2]}" if match else name
        if bare in result:
            raise WeightsError(f"{where}: block {bare} is there twice, in two chunks. Copy the file again.")
        result[bare] = value
    return result


def _configuration(tensors: Mapping[str, Tensor], where: str) -> EncoderConfig:
    width, channels, *patch = checkpoint.shape_of(tensors, "patch_embed.proj.weight", 5, where)
    tokens = checkpoint.shape_of(tensors, "pos_embed", 3, where)[1] - 1
    hidden = checkpoint.shape_of(tensors, "blocks.0.mlp.fc1.weight", 2, where)[0]
    if channels != 1 or width % HEAD_DIM:
        raise WeightsError(
            f"{where}: {channels} channels and {width} features; 3DINO has one channel and heads of {HEAD_DIM}."
        )
    side = checkpoint.cube_root(tokens, "pos_embed", where)
    return EncoderConfig(
        embed_dim=width,
        depth=checkpoint.block_names(tensors, where),
        num_heads=width // HEAD_DIM,
        patch_size=list(patch),
        num_registers=0,
        mlp_ratio=hidden / width,
        position="learned",
        grid_size=[side, side, side],
        position_offset=OFFSET,
    )


def _names(config: EncoderConfig) -> dict[str, str]:
    names = {name: name for name in ("cls_token", "mask_token", "pos_embed", "norm.weight", "norm.bias")}
    names |= {f"patch_embed.proj.{part}": f"patch_embed.{part}" for part in ("weight", "bias")}
    for layer in range(config.depth or 0):
        names |= {f"blocks.{layer}.{part}": f"blocks.{layer}.{part}" for part in BLOCK}
    return names


def _preprocessing(config: EncoderConfig, modality: str) -> Preprocessing:
    assert config.grid_size is not None
    z, y, x = (tokens * patch for tokens, patch in zip(config.grid_size, config.patch_size, strict=True))
    steps = SeriesSteps(crop="percentile", resize="linear", windows_first=True)
    spec = InputSpec("resize", (z, y, x), None, skip_air=0.0, pool="mean", foreground_above=None, steps=steps)
    return Preprocessing((), spec, modality=modality, orientation="RAS", percentiles=PERCENTILES)
