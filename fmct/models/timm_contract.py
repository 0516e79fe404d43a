"""The methods by which code written for timm uses an encoder: features, intermediates, classifier."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fmct.errors import ConfigError

if TYPE_CHECKING:
    from fmct.models.layers import Packing
    from fmct.models.patches import PatchEmbed
    from fmct.shapes import Triple

POOLS = ("", "token", "avg", "max", "avgmax")
FORMATS = ("NCDHW", "NLC")


class TimmContract(nn.Module):
    """timm's method contract (timm ≥ 1.0, VisionTransformer) for volumes.

    One difference: calling the encoder returns an EncoderOutput, not logits; logits are
    `forward_head(forward_features(x))`.
    """

    blocks: nn.ModuleList
    norm: nn.Module
    embed_dim: int
    depth: int
    patch_size: "Triple"
    num_prefix_tokens: int
    activation_checkpointing: bool

    def _embed(
        self, volumes: Any, spacings: Any, masks: Any, keys: Any, patch_embed: Any = None
    ) -> tuple[Any, "Packing", Any, Any, Any]:
        raise AssertionError("given by the encoder")

    def _run_block(self, layer: int, rows: Tensor, packing: "Packing", rotary: Any, keep: Any) -> Tensor:
        raise AssertionError("given by the encoder")

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """One entry for each block: module name, channels, voxels of a patch (z, y, x)."""
        return [
            {"module": f"blocks.{i}", "num_chs": self.embed_dim, "reduction": self.patch_size}
            for i in range(self.depth)
        ]

    def forward_features(
        self, x: Tensor, spacing: Tensor | None = None, *, drop_path_keys: Tensor | None = None
    ) -> Tensor:
        """Return (B, 1 + R + N, E) normalised tokens of (B, C, D, H, W) volumes: CLS, registers, patches."""
        rows, packing, rotary, keep, _ = self._embed([x], [spacing], None, [drop_path_keys])
        for layer in range(self.depth):
            rows = self._run_block(layer, rows, packing, rotary, keep)
        return packing.split(self.norm(rows))[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (B, num_classes) of (B, 1 + R + N, E) tokens, or with `pre_logits` the pooled features."""
        pooled = pool(x, self.global_pool, self.num_prefix_tokens)
        return pooled if pre_logits else self.head(pooled)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCDHW",
        intermediates_only: bool = False,
        *,
        spacing: Tensor | None = None,
        drop_path_keys: Tensor | None = None,
        patch_embed: "PatchEmbed | None" = None,
    ) -> Any:
        """Return the features after chosen blocks, as timm does.

        Args:
            x: (B, C, D, H, W).
            indices: the last n blocks for an integer, all for None, else those blocks (negative from the end); always
                returned in the order of depth.
            return_prefix_tokens: each intermediate becomes (patches, CLS and registers (B, 1 + R, E)).
            norm: apply the final norm to intermediates.
            stop_early: run no block beyond the last one asked for.
            output_fmt: patches as (B, E, gd, gh, gw) for "NCDHW", (B, N, E) for "NLC".
            intermediates_only: return the list alone, else (normalised final tokens (B, 1 + R + N, E), list).
            patch_embed: takes the place of the encoder's own patch embedding, for another kind of input.
        """
        if output_fmt not in FORMATS:
            raise ConfigError(f"output_fmt: expected one of {', '.join(FORMATS)}, got {output_fmt!r}.")
        taken = self._block_indices(indices)
        rows, packing, rotary, keep, grids = self._embed([x], [spacing], None, [drop_path_keys], patch_embed)
        intermediates: list[Any] = []
        for layer in range(max(taken) + 1 if stop_early else self.depth):
            rows = self._run_block(layer, rows, packing, rotary, keep)
            if layer in taken:
                tokens = packing.split(self.norm(rows) if norm else rows)[0]
                prefix, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
                if output_fmt == "NCDHW":
                    patches = patches.transpose(1, 2).unflatten(2, grids[0]).contiguous()
                intermediates.append((patches, prefix) if return_prefix_tokens else patches)
        return intermediates if intermediates_only else (packing.split(self.norm(rows))[0], intermediates)

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        *,
        spacing: Tensor | None = None,
    ) -> list[Any]:
        """Return the intermediates of the last n or the chosen blocks, by DINO's name and arguments."""
        return self.forward_intermediates(
            x,
            n,
            return_prefix_tokens,
            norm,
            output_fmt="NCDHW" if reshape else "NLC",
            intermediates_only=True,
            spacing=spacing,
        )

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new linear classifier (0 classes: none) on the pooled tokens; `global_pool` None keeps the pooling."""
        pooling = self.global_pool if global_pool is None else global_pool
        if pooling not in POOLS:
            raise ConfigError(f"global_pool: expected one of {', '.join(repr(p) for p in POOLS)}, got {pooling!r}.")
        self.global_pool = pooling
        self.num_classes = num_classes
        parameter = next(self.parameters())
        self.head = nn.Identity()
        if num_classes > 0:
            linear = nn.Linear(self.embed_dim, num_classes, device=parameter.device, dtype=parameter.dtype)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            self.head = linear

    def get_classifier(self) -> nn.Module:
        """Return the classifier, an identity when there is none."""
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turn activation checkpointing on or off."""
        self.activation_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters, other than vectors, that are not to be decayed."""
        names = {"cls_token", "register_tokens", "mask_token", "positions.table"}
        return {name for name, _ in self.named_parameters() if name in names}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns for layer-wise settings: the stem, each block, the final norm."""
        del coarse
        return {
            "stem": r"^cls_token|register_tokens|mask_token|positions|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def _block_indices(self, indices: int | Sequence[int] | None) -> set[int]:
        """Return the blocks that timm's `indices` argument means. Raises ConfigError outside the depth."""
        if indices is None:
            return set(range(self.depth))
        if isinstance(indices, int):
            if not 0 < indices <= self.depth:
                raise ConfigError(f"indices: expected 1 to {self.depth} last blocks, got {indices}.")
            return set(range(self.depth - indices, self.depth))
        taken = [int(i) for i in indices]
        if not taken or any(not -self.depth <= i < self.depth for i in taken):
            raise ConfigError(f"indices: expected block numbers from {-self.depth} to {self.depth - 1}, got {taken}.")
        return {i % self.depth for i in taken}


def pool(tokens: Tensor, pooling: str, prefix: int) -> Tensor:
    """Return (B, E) pooled (B, prefix + N, E) tokens: CLS for "token", else over patches; "" returns the tokens."""
    patches = tokens[:, prefix:]
    if pooling == "token":
        return tokens[:, 0]
    if pooling == "avg":
        return patches.mean(1)
    if pooling == "max":
        return patches.amax(1)
    return 0.5 * (patches.amax(1) + patches.mean(1)) if pooling == "avgmax" else tokens
