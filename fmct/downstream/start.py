"""What fine-tuning starts from: a published encoder's weights and preprocessing, or the same network untrained."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from fmct.data.cohort import Cohort, refuse_overlap
from fmct.data.standard_scale import fit_to_training
from fmct.data.window_config import window_grid
from fmct.downstream.config import FineTuning, InputConfig
from fmct.errors import ConfigError
from fmct.models.adaptation import MODES, from_scratch
from fmct.models.encoder import EncoderConfig, VisionTransformer, build_encoder
from fmct.models.unet import UNetConfig
from fmct.preprocess import InputSpec, Preprocessing
from fmct.publish.layout import fingerprint
from fmct.publish.load import PublishedEncoder, load_encoder
from fmct.shapes import Triple, TripleF, triple, triple_of_floats


@dataclass(frozen=True)
class Start:
    """A run's beginning.

    backbone: of the network. encoder: the transformer with its first weights, None for a U-Net. preprocessing: how a
    series becomes windows, in training and in the exported model; its size is the run's window. pretrained: what
    RUN/task.json says of the encoder. report: a line for the log.
    """

    backbone: EncoderConfig | UNetConfig
    encoder: VisionTransformer | None
    preprocessing: Preprocessing
    pretrained: dict[str, Any]
    report: str

    @property
    def spacing_mm(self) -> TripleF:
        """The voxel spacing that the network is built for; 1 mm where it depends on the series."""
        return self.preprocessing.input.spacing_mm or (1.0, 1.0, 1.0)


def starting_point(config: FineTuning, cohort: Cohort) -> Start:
    """Return what a run on a cohort starts from.

    An encoder that was pretrained on patients of the test split is refused, unless allow_overlap says otherwise; what
    is written of the run then says so (fmct.data.cohort.refuse_overlap). Raises DataError for that, ConfigError where
    the configuration and the encoder folder disagree on preprocessing, or neither says what the input is,
    ArtefactError for a folder that is not whole.
    """
    if config.mode not in MODES:
        raise ConfigError(f"mode={config.mode}: expected one of {', '.join(MODES)}.")
    published = load_encoder(config.encoder, device="cpu") if config.encoder else None
    if published is not None and (config.architecture is not None or config.input is not None):
        raise ConfigError(
            "encoder= brings its own architecture and input (its config.json and preprocess.json); leave "
            "`architecture` and `input` out, or leave the encoder out to train from scratch."
        )
    if config.mode != "full" and not config.pretrained:
        raise ConfigError(
            f"mode={config.mode} keeps an encoder as it is, and this run has none that was pretrained. Give "
            "encoder=FOLDER without from_scratch and unet, or take mode=full."
        )
    given = published.preprocessing if published is not None else fit_to_training(_preprocessing(config.input), cohort)
    preprocessing = _with_window(given, config)
    if config.unet is not None:
        return Start(config.unet, None, preprocessing, {}, "a U-Net from random weights")
    if published is None:
        return _untrained(config, preprocessing)
    _check_modality(published, cohort)
    backbone = _steady(published.config)
    encoder = _as_trained(published, backbone)
    if config.from_scratch:
        encoder = from_scratch(encoder, seed=config.seed, layer_scale=config.scratch_layer_scale)
        assert isinstance(encoder, VisionTransformer)
        return Start(backbone, encoder, preprocessing, {}, f"the network of {config.encoder} from random weights")
    on_overlap = "report" if config.allow_overlap else config.data.on_overlap
    notes = refuse_overlap(cohort, published.facts, on_overlap=on_overlap)
    facts = {
        "fingerprint": fingerprint(published.folder) if published.folder else None,
        "step": published.facts.get("step"),
        "recipe": published.facts.get("recipe"),
        "corpus": {k: v for k, v in (published.facts.get("corpus") or {}).items() if k != "voxel_hashes"},
        "overlap": notes,
    }
    return Start(backbone, encoder, preprocessing, facts, f"weights of {'; '.join([published.origin, *notes])}")


def _untrained(config: FineTuning, preprocessing: Preprocessing) -> Start:
    if config.architecture is None:
        raise ConfigError(
            "this run says nothing of its network: give encoder=FOLDER (fmct export writes one), or `architecture` and "
            "`input` to train one from scratch, or `unet`."
        )
    backbone = _steady(config.architecture)
    if config.scratch_layer_scale is not None and backbone.layer_scale is not None:
        backbone = replace(backbone, layer_scale=config.scratch_layer_scale)
    spacing = preprocessing.input.spacing_mm or (1.0, 1.0, 1.0)
    torch.manual_seed(config.seed)
    encoder = build_encoder(backbone, preprocessing.channels, spacing, seed=config.seed)
    return Start(backbone, encoder, preprocessing, {}, "a transformer from random weights")


def _preprocessing(given: InputConfig | None) -> Preprocessing:
    """Return the preprocessing that a configuration describes. Raises ConfigError when it does not."""
    shown = given is not None and (given.windows or given.normalisation.kind != "none")
    if given is None or not shown or given.spacing_mm is None:
        raise ConfigError(
            "without encoder= the configuration says how a series becomes input: add `input: {windows: [{low: -1000, "
            "high: 1000}], spacing_mm: [1.5, 1.5, 1.5]}`, or for MR `input: {modality: MR, normalisation: {kind: "
            "zscore_mask}, spacing_mm: [1, 1, 1]}`."
        )
    spec = InputSpec(
        size_voxels=(1, 1, 1),
        spacing_mm=triple_of_floats(given.spacing_mm, "input.spacing_mm"),
        overlap=given.overlap,
        skip_air=given.skip_air,
        foreground_above=-500.0 if given.modality == "CT" else None,
    )
    return Preprocessing(
        windows=tuple(given.windows),
        input=spec,
        modality=given.modality,
        normalisation=given.normalisation,
        lesion_sign=given.lesion_sign,
    )


def _with_window(given: Preprocessing, config: FineTuning) -> Preprocessing:
    """Return the preprocessing with the run's window as its size. Raises ConfigError for a mismatch."""
    if given.input.size_voxels == (1, 1, 1) and not config.windows.size:
        raise ConfigError("windows.size: without encoder= say how many voxels a window has, such as [64, 64, 64].")
    grid = window_grid(config.windows, given)
    if (
        given.input.mode == "resize"
        and config.windows.size
        and triple(config.windows.size, "windows.size") != (given.input.size_voxels)
    ):
        raise ConfigError(
            f"windows.size={config.windows.size}: this encoder stretches the whole scan to {given.input.size_voxels} "
            "voxels; leave the size out."
        )
    size: Triple = grid.size
    return replace(given, input=replace(given.input, size_voxels=size, spacing_mm=grid.spacing_mm))


def _steady(config: EncoderConfig) -> EncoderConfig:
    """Return an encoder's configuration without what varies positions in pretraining: windows carry their own."""
    return replace(config, rope_rescale=1.0, rope_jitter=1.0)


def _as_trained(published: PublishedEncoder, backbone: EncoderConfig) -> VisionTransformer:
    """Return a trainable encoder with a published one's weights."""
    encoder = build_encoder(backbone, published.preprocessing.channels, published.model.spacing_mm)
    encoder.load_state_dict(published.model.state_dict())
    return encoder


def _check_modality(published: PublishedEncoder, cohort: Cohort) -> None:
    for sample in cohort.samples:
        published.preprocessing.check_modality(sample.entry.modality, f"series {sample.entry.id}")
