"""The pixel term: the voxels of the masked patches of the student's global views, from its tokens (SimMIM, MAE)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fmct.errors import ConfigError
from fmct.losses.histogram import histogram_loss, mean_over_ranks, neighbourhood_histograms, patch_histograms
from fmct.losses.reconstruction import normalise_patches, reconstruction_loss
from fmct.models.heads import ReconstructionDecoder, ReconstructionHead
from fmct.ssl.features import Features


@dataclass(frozen=True)
class PixelConfig:
    """How masked voxels are reconstructed; the weight is `weights.pixel`.

    target: `windows`, the windowed values themselves, or `normalised`, standardised per patch and window, where
    `floor` (in units of the windowed values) keeps air at 0. distance: l1, l2 or smooth-l1, quadratic below `beta`.
    decoder_depth 0: SimMIM's linear head; more: MAE's decoder of that many blocks, `decoder_dim` wide.

    histogram: weight of a second target, how a patch's voxels spread over `bins` bins of each window, as a
    cross-entropy (a hand-made feature as target, as in MaskFeat, Wei et al., 2022; here what tissue is in the patch and
    how mixed, in place of oriented gradients). Windows must map to [0, 1]. neighbourhoods: odd sides, in patches, of
    the cubes around a patch whose histograms are predicted: 1 is the patch alone. visible: the share of that term which
    is about the patches that the student sees, so that its last layer keeps what they are made of.
    """

    target: str = "windows"
    distance: str = "l1"
    beta: float = 1.0
    floor: float = 0.01
    decoder_depth: int = 0
    decoder_dim: int = 384
    decoder_heads: int = 6
    histogram: float = 0.0
    bins: int = 8
    neighbourhoods: list[int] = field(default_factory=lambda: [1])
    visible: float = 0.5


class PixelTerm:
    """Reconstruction of masked patches. The head is registered by the task, which trains it."""

    def __init__(
        self,
        head: ReconstructionHead | ReconstructionDecoder,
        config: PixelConfig,
        *,
        channels: int,
        width: int,
    ) -> None:
        if config.target not in ("windows", "normalised"):
            raise ConfigError(f"pixel.target {config.target!r}: expected windows or normalised.")
        if config.floor <= 0:
            raise ConfigError(f"pixel.floor {config.floor}: expected a positive value, such as 0.01.")
        if config.histogram < 0 or config.bins < 2 or not 0 <= config.visible <= 1:
            raise ConfigError("pixel: histogram must not be negative, bins at least 2, visible a share in 0 … 1.")
        if not config.neighbourhoods or any(side < 1 or side % 2 == 0 for side in config.neighbourhoods):
            raise ConfigError(
                f"pixel.neighbourhoods {config.neighbourhoods}: expected odd sides in patches, as [1, 3]."
            )
        self.voxels = head
        self.histogram: nn.Linear | None = None
        self.head: nn.Module = head
        if config.histogram:
            self.histogram = nn.Linear(width, len(config.neighbourhoods) * channels * config.bins)
            nn.init.trunc_normal_(self.histogram.weight, std=0.02)
            nn.init.zeros_(self.histogram.bias)
            self.head = nn.ModuleDict({"voxels": head, "histogram": self.histogram})
        self.config = config
        self.channels = channels

    def loss(self, features: Features) -> Tensor:
        """Return the reconstruction loss of the student's masked tokens."""
        masked = features.masked
        if isinstance(self.voxels, ReconstructionDecoder):
            decoded = self.voxels(features.student.patches, features.student.grid, features.mask)
            prediction = features.masked_tokens(decoded)[:masked]
        else:
            prediction = self.voxels(features.masked_tokens(features.student.patches))[:masked]
        target = self.target(features.masked_tokens(features.patches)[:masked])
        distance = self.config.distance
        loss = reconstruction_loss(prediction, target, distance=distance, beta=self.config.beta)  # type: ignore[arg-type]
        if self.histogram is not None:
            loss = loss + self.config.histogram * self._histogram_loss(self.histogram, features)
        return loss

    def _histogram_loss(self, head: nn.Linear, features: Features) -> Tensor:
        sides, bins = self.config.neighbourhoods, self.config.bins
        logits = head(features.student.patches).unflatten(-1, (len(sides) * self.channels, bins))
        own = patch_histograms(features.patches, channels=self.channels, bins=bins)
        target = torch.cat([neighbourhood_histograms(own, features.student.grid, side) for side in sides], dim=-2)
        error = histogram_loss(logits, target)
        visible = self.config.visible
        return (1 - visible) * mean_over_ranks(error, features.mask) + visible * mean_over_ranks(error, ~features.mask)

    @torch.no_grad()
    def target(self, patches: Tensor) -> Tensor:
        """Return what is to be predicted of (M, C·p³) windowed patches."""
        if self.config.target == "windows":
            return patches
        return normalise_patches(patches, channels=self.channels, floor=self.config.floor)
