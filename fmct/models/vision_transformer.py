"""A vision transformer for volumes of any size and spacing, with timm's method contract."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from timm.layers.layer_scale import LayerScale
from timm.layers.norm import LayerNorm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fmct.errors import ConfigError
from fmct.models.inputs import CropGroup, crop_groups, require_keys
from fmct.models.keyed import drop_path_factors
from fmct.models.layers import Block, Packing
from fmct.models.patches import PatchEmbed, PatchEmbedding
from fmct.models.positions import LearnedPositions, SinCosPositions
from fmct.models.rope import RotaryTable, both_halves
from fmct.models.timm_contract import TimmContract
from fmct.shapes import Triple, patch_grid, triple, triple_of_floats

POSITIONS = ("rope", "sincos", "learned")


class EncoderOutput(NamedTuple):
    """Normalised features: cls (B, E), registers (B, R, E), patches (B, N, E) with z slowest, grid (z, y, x)."""

    cls: Tensor
    registers: Tensor
    patches: Tensor
    grid: Triple


class VisionTransformer(TimmContract):
    """Volumes (B, C, D, H, W) → tokens. Any size that the patch divides, any spacing.

    Args:
        in_channels: intensity windows.
        patch_size: voxels of a patch (z, y, x), one number or three.
        num_registers: learned tokens beside CLS that hold no position and are returned apart (Darcet et al. 2024).
        position: "rope" turns queries and keys by physical distance (see `fmct.models.rope`), "sincos" adds fixed
            vectors, "learned" adds a trainable table on `grid_size`, interpolated to other grids.
        grid_size: tokens per axis of the learned table.
        spacing_mm: voxel spacing (z, y, x) meant when `spacing` is not given to a forward pass.
        position_initial: "normal" or "sincos", the learned table's start.
        sincos_unit: "patch" or "mm".
        rope_min_period_mm, rope_max_period_mm: the range of wavelengths, in units of `rope_unit`: "mm", or "crop".
        rope_rescale, rope_jitter: training only; largest random factor on the coordinates, common and per axis.
        position_offset: of the learned table's interpolation (see `resize_positions`), 0.1 for some published weights.
        layer_scale: initial LayerScale (Touvron et al. 2021), None for none.
        drop_path: probability that a sample skips a residual branch in training, the same at all depths.
        mask_token: whether `mask` can be given.
        norm_eps, final_norm_eps: of the LayerNorms in and after the blocks.
        num_classes, global_pool: timm's classifier on top, used by `forward_head` only.
        seed: of drop-path and of random rescaling.

    Raises ConfigError for impossible settings.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        patch_size: int | Sequence[int],
        embed_dim: int,
        depth: int,
        num_heads: int,
        num_registers: int = 4,
        mlp_ratio: float = 4.0,
        position: str = "rope",
        grid_size: int | Sequence[int] | None = None,
        spacing_mm: float | Sequence[float] = 1.0,
        position_initial: str = "normal",
        sincos_unit: str = "patch",
        rope_min_period_mm: float = 32.0,
        rope_max_period_mm: float = 1600.0,
        rope_rescale: float = 1.0,
        rope_jitter: float = 1.0,
        rope_unit: str = "mm",
        position_offset: float = 0.0,
        qkv_bias: bool = True,
        layer_scale: float | None = 1e-5,
        drop_path: float = 0.0,
        swiglu: bool = False,
        mask_token: bool = True,
        activation_checkpointing: bool = False,
        norm_eps: float = 1e-6,
        final_norm_eps: float = 1e-6,
        num_classes: int = 0,
        global_pool: str = "token",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise ConfigError(f"drop_path: expected a probability in [0, 1), got {drop_path}.")
        if depth < 1 or num_registers < 0:
            raise ConfigError(f"expected depth ≥ 1 and num_registers ≥ 0, got {depth} and {num_registers}.")
        self.in_channels = in_channels
        self.patch_size = triple(patch_size, "patch_size")
        self.spacing_mm = triple_of_floats(spacing_mm, "spacing_mm")
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.depth = depth
        self.num_registers, self.num_prefix_tokens = num_registers, 1 + num_registers
        self.position = position
        self.drop_path = drop_path
        self.activation_checkpointing = activation_checkpointing
        self.seed = seed
        self.patch_embed = PatchEmbedding(in_channels, embed_dim, self.patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.register_tokens = nn.Parameter(torch.empty(1, num_registers, embed_dim)) if num_registers else None
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if mask_token else None
        block = partial(Block, embed_dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, swiglu=swiglu)
        self.blocks = nn.ModuleList(block(layer_scale=layer_scale, norm_eps=norm_eps) for _ in range(depth))
        self.norm = LayerNorm(embed_dim, eps=final_norm_eps)
        self.positions = self._added_positions(grid_size, position_initial, sincos_unit, position_offset)
        periods = (rope_min_period_mm, rope_max_period_mm)
        self.rotary = self._rotary_positions(embed_dim // num_heads, periods, rope_rescale, rope_jitter, rope_unit)
        self.reset_classifier(num_classes, global_pool)
        self.init_weights()

    def _added_positions(
        self, grid_size: int | Sequence[int] | None, initial: str, unit: str, offset: float
    ) -> LearnedPositions | SinCosPositions | None:
        if self.position == "rope":
            return None
        if self.position == "sincos":
            return SinCosPositions(self.embed_dim, reference_mm=self.spacing_mm, unit=unit)
        if self.position != "learned":
            raise ConfigError(f"position: expected one of {', '.join(POSITIONS)}, got {self.position!r}.")
        if grid_size is None:
            raise ConfigError("learned positions need grid_size: the tokens per axis (z, y, x) of their table.")
        return LearnedPositions(triple(grid_size, "grid_size"), self.embed_dim, initial=initial, offset=offset)

    def _rotary_positions(
        self, head_dim: int, periods: tuple[float, float], rescale: float, jitter: float, unit: str
    ) -> RotaryTable | None:
        if self.position != "rope":
            return None
        return RotaryTable(
            head_dim,
            patch_size=self.patch_size,
            reference_mm=self.spacing_mm,
            min_period_mm=periods[0],
            max_period_mm=periods[1],
            rescale=rescale,
            jitter=jitter,
            seed=self.seed,
            unit=unit,
        )

    def init_weights(self) -> None:
        """Initialise every parameter: truncated normal 0.02 for matrices and tokens, 0 for biases and the mask."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, PatchEmbedding)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.LayerNorm, LayerScale)):
                module.reset_parameters()
            elif isinstance(module, LearnedPositions):
                module.init_weights()
        for token in (self.cls_token, self.register_tokens):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        if self.mask_token is not None:
            nn.init.zeros_(self.mask_token)

    def num_patches(self, size: Sequence[int]) -> int:
        """Return the number of patch tokens of a volume of `size` voxels (z, y, x)."""
        d, h, w = patch_grid(size, self.patch_size)
        return d * h * w

    def forward(
        self,
        x: Tensor,
        spacing: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        drop_path_keys: Tensor | None = None,
        patches: Tensor | None = None,
    ) -> EncoderOutput:
        """Return the features of (B, C, D, H, W) volumes.

        `spacing` is (B, 3) mm, None meaning `spacing_mm`; `mask` (B, N) bool marks patches whose embedding is replaced
        by the mask token; `drop_path_keys` (B,) int64 name the samples for drop-path in training; `patches` is what
        `patchify` gives of the volumes, where the caller has it already.
        """
        return self.forward_crops([x], [spacing], [mask], drop_path_keys=[drop_path_keys], patches=[patches])[0]

    def forward_crops(
        self,
        volumes: Sequence[Tensor],
        spacings: Sequence[Tensor | None] | None = None,
        masks: Sequence[Tensor | None] | None = None,
        *,
        drop_path_keys: Sequence[Tensor | None] | None = None,
        patches: Sequence[Tensor | None] | None = None,
    ) -> list[EncoderOutput]:
        """Return the features of several groups of crops, each group (B, C, D, H, W) of its own size, in one pass.

        Equal to one `forward` per group, but token-wise layers run once on the tokens of all groups. `patches`: what
        `patchify` gives of a group's volumes, where the caller has it already.
        """
        rows, packing, rotary, keep, grids = self._embed(volumes, spacings, masks, drop_path_keys, patches=patches)
        for layer in range(self.depth):
            rows = self._run_block(layer, rows, packing, rotary, keep)
        prefix = self.num_prefix_tokens
        return [
            EncoderOutput(tokens[:, 0], tokens[:, 1:prefix], tokens[:, prefix:], grid)
            for tokens, grid in zip(packing.split(self.norm(rows)), grids, strict=True)
        ]

    def _run_block(
        self, layer: int, rows: Tensor, packing: Packing, rotary: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        """Return the rows after block `layer`, recomputed in the backward pass under activation checkpointing."""
        arguments = (rows, packing, rotary, None if keep is None else keep[layer])
        if self.activation_checkpointing and torch.is_grad_enabled():
            recomputed = checkpoint(self.blocks[layer], *arguments, use_reentrant=False, preserve_rng_state=False)
            assert isinstance(recomputed, Tensor)
            return recomputed
        return self.blocks[layer](*arguments)

    def _embed(
        self,
        volumes: Sequence[Tensor],
        spacings: Sequence[Tensor | None] | None,
        masks: Sequence[Tensor | None] | None,
        keys: Sequence[Tensor | None] | None,
        patch_embed: PatchEmbed | None = None,
        patches: Sequence[Tensor | None] | None = None,
    ) -> tuple[Tensor, Packing, Tensor | None, Tensor | None, list[Triple]]:
        """Return packed (M, E) rows before the first block and what the blocks need beside them.

        That is the packing, the (M, 2, head_dim) rotary table, (depth, 2, M, 1) drop-path factors, and the grids.
        """
        embed = self.patch_embed if patch_embed is None else patch_embed
        groups = crop_groups(volumes, spacings, masks, keys, in_channels=embed.in_channels, patch_size=self.patch_size)
        dropping = self.training and self.drop_path > 0
        if dropping or (self.rotary is not None and self.rotary.is_random):
            require_keys(groups)
        cut = [None] * len(groups) if patches is None else patches
        tokens = [self._tokens(g, embed(g.volume if p is None else p)) for g, p in zip(groups, cut, strict=True)]
        packing = Packing(tuple((t.shape[0], t.shape[1]) for t in tokens))
        keep = None
        if dropping:
            drawn = [g.keys.to(t.device) for g, t in zip(groups, tokens, strict=True) if g.keys is not None]
            factors = drop_path_factors(torch.cat(drawn), rate=self.drop_path, depth=self.depth, seed=self.seed)
            keep = packing.repeat(factors)
        return packing.spread(tokens), packing, self._rotary_rows(packing, groups), keep, [g.grid for g in groups]

    def _tokens(self, group: CropGroup, patches: Tensor) -> Tensor:
        """Return (B, 1 + R + N, E): CLS, registers, then patches, masked, with positions where these are added."""
        cls = self.cls_token
        if self.mask_token is not None:
            cls = cls + 0 * self.mask_token  # a gradient for the mask token even when nothing is masked
            if group.mask is not None:
                patches = torch.where(group.mask[..., None], self.mask_token.to(patches.dtype), patches)
        elif group.mask is not None:
            raise ConfigError("this encoder has no mask token: build it with mask_token=True to mask patches.")
        if self.positions is not None:
            patches = patches + self.positions(group.grid, group.spacing, patches.device).to(cls.dtype)
        prefix = cls.flatten(0, 1)
        if self.register_tokens is not None:  # joined as rows: their gradients are then as contiguous as they are
            prefix = torch.cat([prefix, self.register_tokens.flatten(0, 1)])
        return torch.cat([prefix.expand(patches.shape[0], -1, -1), patches], dim=1)

    def _rotary_rows(self, packing: Packing, groups: Sequence[CropGroup]) -> Tensor | None:
        """Return the (M, 2, head_dim) table that all blocks share, or None."""
        if self.rotary is None:
            return None
        tables = [
            self.rotary(g.grid, g.spacing, g.keys, prefix=self.num_prefix_tokens, device=g.volume.device)
            for g in groups
        ]
        return both_halves(packing.spread(tables))
