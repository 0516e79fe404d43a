"""Self-distillation from its configuration."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from fmct.errors import ConfigError
from fmct.models.encoder import VisionTransformer
from fmct.models.heads import ProjectionHead, ReconstructionDecoder, ReconstructionHead
from fmct.ssl.gram_teacher import GramConfig, GramTeacher
from fmct.ssl.monitor import HealthConfig, HealthMonitor
from fmct.ssl.pixels import PixelConfig, PixelTerm
from fmct.ssl.self_distillation import TERMS, SelfDistillation
from fmct.ssl.targets import Targets


@dataclass(frozen=True)
class HeadConfig:
    """A projection head: an MLP of `layers` linear layers to the bottleneck, then the prototypes.

    prototype_std: of the prototypes' initial weights (fmct.models.heads.ProjectionHead says what it changes).
    """

    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    num_prototypes: int = 65536
    layers: int = 3
    prototype_std: float = 0.02


@dataclass(frozen=True)
class WeightsConfig:
    """The weight of each term in the loss. A schedule named `weight/NAME` overrides one. 0: not computed, not built."""

    dino: float = 1.0
    ibot: float = 1.0
    koleo: float = 0.1
    gram: float = 0.0
    pixel: float = 0.0


@dataclass(frozen=True)
class TargetsConfig:
    """From teacher logits to targets: `sinkhorn` balancing of `iterations`, or `centring` with `centre_momentum`."""

    method: str = "sinkhorn"
    iterations: int = 3
    centre_momentum: float = 0.9


@dataclass(frozen=True)
class SelfDistillationConfig:
    """The objective of pretraining.

    share_head: iBOT uses DINO's head; else it has its own, `ibot_head`. student_temperature: of the student's softmax;
    the teacher's is scheduled. masked_bound: share of the patch tokens that the buffer of masked tokens holds on
    accelerators; a little above the mean share that is masked keeps shapes static and wastes little.
    """

    weights: WeightsConfig = field(default_factory=WeightsConfig)
    dino_head: HeadConfig = field(default_factory=HeadConfig)
    ibot_head: HeadConfig = field(default_factory=HeadConfig)
    share_head: bool = False
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    student_temperature: float = 0.1
    masked_bound: float = 0.25
    pixel: PixelConfig = field(default_factory=PixelConfig)
    gram: GramConfig = field(default_factory=GramConfig)
    health: HealthConfig = field(default_factory=HealthConfig)


def build_self_distillation(
    encoder: VisionTransformer, config: SelfDistillationConfig, *, scheduled: Sequence[str] = ()
) -> SelfDistillation:
    """Return the task that trains `encoder`.

    scheduled: names of terms whose weight comes from a schedule, so that their parts are built although the
    configuration's weight is 0. The teacher begins as a copy of the encoder as it is now: load weights before. Raises
    ConfigError for impossible settings.
    """
    unknown = sorted(set(scheduled) - set(TERMS))
    if unknown:
        raise ConfigError(f"a schedule names the weight of {unknown[0]!r}; the terms are {', '.join(TERMS)}.")
    if config.student_temperature <= 0 or not 0 <= config.masked_bound <= 1:
        raise ConfigError("student_temperature is positive, and masked_bound a share between 0 and 1.")
    weights = {name: float(getattr(config.weights, name)) for name in TERMS}
    if any(weight < 0 for weight in weights.values()):
        raise ConfigError(f"the weights of terms are not negative; got {weights}.")
    on = {name: bool(weights[name]) or name in scheduled for name in TERMS}
    width = encoder.embed_dim
    dino_head = _head(width, config.dino_head) if on["dino"] or (on["ibot"] and config.share_head) else None
    ibot_head = _head(width, config.ibot_head) if on["ibot"] and not config.share_head else None
    patch_head = config.dino_head if config.share_head else config.ibot_head
    prototypes = {
        kind: number
        for kind, number, used in (
            ("cls", config.dino_head.num_prototypes, on["dino"]),
            ("patch", patch_head.num_prototypes, on["ibot"]),
        )
        if used
    }
    return SelfDistillation(
        encoder,
        weights=weights,
        dino_head=dino_head,
        ibot_head=ibot_head,
        dino_targets=_targets(prototypes["cls"], config.targets) if on["dino"] else None,
        ibot_targets=_targets(prototypes["patch"], config.targets) if on["ibot"] else None,
        pixel=_pixel(encoder, config.pixel) if on["pixel"] else None,
        gram=GramTeacher(encoder, config.gram) if on["gram"] else None,
        monitor=HealthMonitor(config.health, num_prototypes=prototypes, width=width),
        student_temperature=config.student_temperature,
        masked_bound=config.masked_bound,
    )


def _head(width: int, config: HeadConfig) -> nn.Module:
    return ProjectionHead(
        width,
        hidden_dim=config.hidden_dim,
        bottleneck_dim=config.bottleneck_dim,
        num_prototypes=config.num_prototypes,
        layers=config.layers,
        prototype_std=config.prototype_std,
    )


def _targets(num_prototypes: int, config: TargetsConfig) -> Targets:
    return Targets(
        num_prototypes,
        method=config.method,  # type: ignore[arg-type]
        iterations=config.iterations,
        centre_momentum=config.centre_momentum,
    )


def _pixel(encoder: VisionTransformer, config: PixelConfig) -> PixelTerm:
    width, channels, patch = encoder.embed_dim, encoder.in_channels, encoder.patch_size
    if config.decoder_depth:
        head: ReconstructionHead | ReconstructionDecoder = ReconstructionDecoder(
            width,
            patch,
            channels,
            decoder_dim=config.decoder_dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_heads,
        )
    else:
        head = ReconstructionHead(width, patch, channels)
    return PixelTerm(head, config, channels=channels, width=width)
