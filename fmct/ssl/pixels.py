"""The pixel term: the voxels of the masked patches of the student's global views, from its tokens (SimMIM, MAE)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmct.errors import ConfigError
from fmct.losses.reconstruction import normalise_patches, reconstruction_loss
from fmct.models.heads import ReconstructionDecoder, ReconstructionHead
from fmct.models.patches import patchify
from fmct.ssl.features import Features


@dataclass(frozen=True)
class PixelConfig:
    """How masked voxels are reconstructed; the weight is `weights.pixel`.

    target: `windows`, the windowed values themselves, or `normalised`, standardised per patch and window, where
    `floor` (in units of the windowed values) keeps air at 0. distance: l1, l2 or smooth-l1, quadratic below `beta`.
    decoder_depth 0: SimMIM's linear head; more: MAE's decoder of that many blocks, `decoder_dim` wide.
    """

    target: str = "windows"
    distance: str = "l1"
    beta: float = 1.0
    floor: float = 0.01
    decoder_depth: int = 0
    decoder_dim: int = 384
    decoder_heads: int = 6


class PixelTerm:
    """Reconstruction of masked patches. The head is registered by the task, which trains it."""

    def __init__(self, head: ReconstructionHead | ReconstructionDecoder, config: PixelConfig, *, channels: int) -> None:
        if config.target not in ("windows", "normalised"):
            raise ConfigError(f"pixel.target {config.target!r}: expected windows or normalised.")
        if config.floor <= 0:
            raise ConfigError(f"pixel.floor {config.floor}: expected a positive value, such as 0.01.")
        self.head: nn.Module = head
        self.config = config
        self.channels = channels

    def loss(self, features: Features, volumes: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
        """Return the reconstruction loss of the student's masked tokens; `volumes` are the (G·B, C, D, H, W) views."""
        masked = features.masked
        if isinstance(self.head, ReconstructionDecoder):
            decoded = self.head(features.student.patches, features.student.grid, features.mask)
            prediction = features.masked_tokens(decoded)[:masked]
        else:
            prediction = self.head(features.masked_tokens(features.student.patches))[:masked]
        target = self.target(features.masked_tokens(patchify(volumes, patch_size))[:masked])
        distance = self.config.distance
        return reconstruction_loss(prediction, target, distance=distance, beta=self.config.beta)  # type: ignore[arg-type]

    @torch.no_grad()
    def target(self, patches: Tensor) -> Tensor:
        """Return what is to be predicted of (M, C·p³) windowed patches."""
        if self.config.target == "windows":
            return patches
        return normalise_patches(patches, channels=self.channels, floor=self.config.floor)
