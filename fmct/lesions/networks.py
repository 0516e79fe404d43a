"""The three networks of a detector, built from its configuration: detector, teacher and student."""

from dataclasses import replace

import torch

from fmct.errors import ConfigError
from fmct.lesions.settings import DiscriminateConfig, LesionConfig, ProposeConfig
from fmct.models.adaptation import EncoderHolder
from fmct.models.encoder import build_encoder
from fmct.models.lesion_segmenter import LesionNetworkConfig
from fmct.models.vision_transformer import VisionTransformer
from fmct.publish.load import load_encoder
from fmct.tasks.lesion_proposal import build_network, describe_network

OFFSETS = {"detector": 0, "teacher": 1, "student": 2}  # so that no two networks begin with the same weights


def build_detector(config: ProposeConfig, seed: int, *, encoder: VisionTransformer | None = None) -> EncoderHolder:
    """Return the untrained detector, on `encoder` where one is given."""
    return _built(config.network, seed, "detector", voxels=True, patch=False, encoder=encoder)


def build_teacher(config: DiscriminateConfig, seed: int) -> EncoderHolder:
    """Return the untrained teacher: a voxel head and a patch head."""
    return _built(config.teacher, seed, "teacher", voxels=True, patch=True)


def build_student(config: DiscriminateConfig, seed: int) -> EncoderHolder:
    """Return the untrained student: a patch head alone."""
    return _built(config.student, seed, "student", voxels=False, patch=True)


def with_encoder(config: LesionConfig) -> tuple[LesionConfig, VisionTransformer | None]:
    """Return (the configuration with the architecture of the encoder it names, that encoder), to train it further.

    Without one: (config, None). An encoder of another modality is refused, unless domain_jump says that it is meant,
    and so is one that does not take one channel. Raises ConfigError, DataError.
    """
    if not config.propose.encoder:
        return config, None
    encoder = load_encoder(config.propose.encoder, device="cpu")
    network, path = config.propose.network, config.propose.encoder
    if not config.propose.domain_jump:
        encoder.preprocessing.check_modality(config.prepare.modality)
    if network.kind != "encoder" or encoder.preprocessing.channels != 1:
        raise ConfigError(
            f"propose.encoder={path}: goes with propose.network.kind=encoder, and has to take one channel; it takes "
            f"{encoder.preprocessing.channels}."
        )
    known = replace(network, encoder=replace(encoder.config, rope_rescale=1.0, rope_jitter=1.0))
    model = build_encoder(known.encoder, 1, encoder.model.spacing_mm)
    model.load_state_dict(encoder.model.state_dict())
    return replace(config, propose=replace(config.propose, network=known)), model


def _built(
    config: LesionNetworkConfig,
    seed: int,
    name: str,
    *,
    voxels: bool,
    patch: bool,
    encoder: VisionTransformer | None = None,
) -> EncoderHolder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3 * seed + OFFSETS[name])
        return build_network(describe_network(config, voxels=voxels, patch=patch), encoder=encoder)
