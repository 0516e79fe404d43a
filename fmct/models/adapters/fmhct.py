"""FM-HCT (NYU's head-CT foundation model): its released layout and its training checkpoints.

A plain ViT on 96³ voxels with learned positions; the axes of its arrays are Right, Anterior, Superior. The released
file is flat and has 138 tensors (no bias on queries, keys and values, no registers); other runs of theirs have the
bias (150) or registers too (151). Facts: NYUMedML/headCT_foundation at c93468d; no code of it is used.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fmct.errors import ConfigError, WeightsError
from fmct.models.adapters import checkpoint
from fmct.models.adapters.adapted import AdaptedEncoder, adapted
from fmct.models.encoder import EncoderConfig
from fmct.preprocess import InputSpec, Preprocessing
from fmct.series_steps import SeriesSteps
from fmct.windows import Window

WINDOWS = (Window(0, 80, "brain"), Window(-20, 180, "subdural"), Window(-800, 2000, "bone"))
ONE_WINDOW = (Window(-110, 190, "brain"),)
WINDOW_ORDERS = ("crop-window-resize", "resize-window")
ROLES = {"student": "state_dict", "teacher": "momentum_model_state_dict"}
DEPTH, HEADS = 12, 12
_BLOCK = {
    "att_norm.weight": "norm1.weight",
    "att_norm.bias": "norm1.bias",
    "ffn_norm.weight": "norm2.weight",
    "ffn_norm.bias": "norm2.bias",
    "attn.qkv.weight": "attn.qkv.weight",
    "attn.proj.weight": "attn.proj.weight",
    "attn.proj.bias": "attn.proj.bias",
    "mlp.linear1.weight": "mlp.fc1.weight",
    "mlp.linear1.bias": "mlp.fc1.bias",
    "mlp.linear2.weight": "mlp.fc2.weight",
    "mlp.linear2.bias": "mlp.fc2.bias",
}
_POSITIONS = "patch_embedding.position_embeddings"
_PATCHES = "patch_embedding.patch_embeddings"


def load_fmhct(
    path: str | Path,
    *,
    role: str | None = None,
    qkv_bias: bool | str = "auto",
    window_order: str = "crop-window-resize",
) -> AdaptedEncoder:
    """Return FM-HCT's encoder of a file, with the preprocessing that it was trained under.

    role: "student" or "teacher" of a training checkpoint, which holds both; None for the released file, which does not
    say. qkv_bias: True or False to insist on a variant. window_order: "crop-window-resize" as its training did (and
    rounded to half precision, as its cache was), "resize-window" as its published notebook does.
    Raises WeightsError on any tensor missing, unexpected or of another shape, ConfigError for an unknown choice.
    """
    if window_order not in WINDOW_ORDERS or role not in (None, *ROLES) or qkv_bias not in ("auto", True, False):
        raise ConfigError(
            f"FM-HCT: window_order is one of {', '.join(WINDOW_ORDERS)}, role one of {', '.join(ROLES)} or None, "
            f"qkv_bias auto, true or false; got {window_order!r}, {role!r}, {qkv_bias!r}."
        )
    where = str(path)
    tensors, dropped = _chosen(checkpoint.read_checkpoint(path), role, where)
    config, channels = _configuration(tensors, qkv_bias, where)
    weights = checkpoint.take_by_name(tensors, _names(config), where, hint=_hint(tensors))
    facts = {
        "layout": "fmhct",
        "source": role or "released",
        "project": "NYUMedML/headCT_foundation",
        "heads_left_out": dropped,
        "window_order": window_order,
    }
    return adapted(weights, config, channels, _preprocessing(config, channels, window_order), facts, where)


def _chosen(tree: Mapping[str, Any], role: str | None, where: str) -> tuple[dict[str, Tensor], int]:
    """Return the tensors of the file, or of the role in a training checkpoint, and how many of heads were left out."""
    if checkpoint.is_state_dict(tree):
        if role is not None:
            raise WeightsError(
                f"{where}: one flat set of tensors, which does not say whether it is a student's or a teacher's: leave "
                f"role={role} out, or give the training checkpoint that holds both."
            )
        return checkpoint.stripped(tree, where), 0
    present = [name for name, key in ROLES.items() if isinstance(tree.get(key), Mapping)]
    if not present:
        raise WeightsError(
            f"{where}: expected tensors, or a training checkpoint with {' or '.join(ROLES.values())}; found "
            f"{', '.join(list(tree)[:6])}."
        )
    if role is None and len(present) > 1:
        raise WeightsError(f"{where}: a training checkpoint of both. Say which: role=teacher or role=student.")
    chosen = role or present[0]
    if chosen not in present:
        raise WeightsError(f"{where}: holds no {chosen}, only the {present[0]}. Say role={present[0]}.")
    return checkpoint.without_heads(checkpoint.stripped(tree[ROLES[chosen]], where), ("head",))


def _configuration(tensors: Mapping[str, Tensor], qkv_bias: bool | str, where: str) -> tuple[EncoderConfig, int]:
    """Return the encoder that the shapes describe, and its channels."""
    width, channels, *patch = checkpoint.shape_of(tensors, f"{_PATCHES}.weight", 5, where)
    tokens = checkpoint.shape_of(tensors, _POSITIONS, 3, where)[1]
    hidden = checkpoint.shape_of(tensors, "blocks.0.mlp.linear1.weight", 2, where)[0]
    registers = checkpoint.shape_of(tensors, "register_tokens", 3, where)[1] if "register_tokens" in tensors else 0
    biased = any(name.endswith("attn.qkv.bias") for name in tensors)
    if qkv_bias != "auto" and biased != qkv_bias:
        raise WeightsError(
            f"{where}: {'has' if biased else 'has no'} bias on queries, keys and values, and qkv_bias={qkv_bias} was "
            "asked for. Use the file that was meant, or qkv_bias=auto."
        )
    depth = checkpoint.block_names(tensors, where)
    if depth != DEPTH or channels not in (1, 3) or width % HEADS:
        raise WeightsError(
            f"{where}: {depth} blocks, {channels} channels and {width} features; FM-HCT has {DEPTH} blocks of {HEADS} "
            "heads on 3 windows (or 1)."
        )
    side = checkpoint.cube_root(tokens, _POSITIONS, where)
    config = EncoderConfig(
        embed_dim=width,
        depth=depth,
        num_heads=HEADS,
        patch_size=list(patch),
        num_registers=registers,
        mlp_ratio=hidden / width,
        position="learned",
        position_initial="sincos",
        grid_size=[side, side, side],
        qkv_bias=biased,
        layer_scale=None,
        mask_token=False,
        norm_eps=1e-5,
        final_norm_eps=1e-6,
    )
    return config, channels


def _names(config: EncoderConfig) -> dict[str, str]:
    """Return {their name: own name} of every tensor that the variant has, no more."""
    names = {
        "cls_token": "cls_token",
        _POSITIONS: "positions.table",
        f"{_PATCHES}.weight": "patch_embed.weight",
        f"{_PATCHES}.bias": "patch_embed.bias",
        "norm.weight": "norm.weight",
        "norm.bias": "norm.bias",
    }
    block = {**_BLOCK, "attn.qkv.bias": "attn.qkv.bias"} if config.qkv_bias else _BLOCK
    for layer in range(DEPTH):
        names |= {f"blocks.{layer}.{theirs}": f"blocks.{layer}.{own}" for theirs, own in block.items()}
    return {**names, "register_tokens": "register_tokens"} if config.num_registers else names


def _preprocessing(config: EncoderConfig, channels: int, window_order: str) -> Preprocessing:
    assert config.grid_size is not None
    z, y, x = (tokens * patch for tokens, patch in zip(config.grid_size, config.patch_size, strict=True))
    as_trained = window_order == "crop-window-resize"
    steps = SeriesSteps(
        spline_mm=(1.0, 1.0, 1.0),
        crop="above",
        crop_above=0.0,
        resize="area",
        windows_first=as_trained,
        half=as_trained,
    )
    spec = InputSpec("resize", (z, y, x), None, skip_air=0.0, pool="mean", foreground_above=0.0, steps=steps)
    return Preprocessing(WINDOWS if channels == 3 else ONE_WINDOW, spec, orientation="RAS")


def _hint(tensors: Mapping[str, Tensor]) -> str:
    if any("lora_" in name for name in tensors):
        return "This one was fine-tuned with LoRA; merge its matrices where it came from, or use the file before it."
    if any(name.startswith("decoder_") or name == "mask_token" for name in tensors):
        return "This is the masked autoencoder, which is another model; the released encoder is the DINO one."
    if any(name.startswith("head.") for name in tensors):
        return "The DINO head belongs to a training checkpoint; save it with its outer dictionary, or without the head."
    return "Expected FM-HCT's released layout: 138 tensors, 150 with a bias on queries, keys and values, or registers."
