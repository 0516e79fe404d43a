"""Attention-guided embolism detection: what both stages are configured by, and stage one, the slab classifier."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fmct import distributed
from fmct.data.cohort import read_cohort
from fmct.data.labelled import LabelledBatch
from fmct.data.slab_config import BudgetConfig, SlabsConfig, check_slabs
from fmct.data.slabs import build_slab_loader, check_input, check_samples, within_budget
from fmct.data.window_config import WindowsConfig
from fmct.downstream.config import FineTuning, InputConfig, ShotsConfig
from fmct.downstream.run import Prepared, adapted, fine_tune
from fmct.downstream.start import Start, starting_point
from fmct.errors import ConfigError
from fmct.models.conv_lstm import SeriesReaderConfig
from fmct.models.flops import finetune_flops, forward_flops
from fmct.models.slab_network import SlabNetworkConfig
from fmct.preprocess import InputSpec, Preprocessing
from fmct.shapes import triple, triple_of_floats
from fmct.tasks import attention_pe
from fmct.tasks.attention_pe import SlabAttention, SlabObjective
from fmct.tasks.backbone import describe
from fmct.train.session import Options, per_rank

KIND = "attention_pe"
STAGES = ("slabs", "series")
POOLS = ("max", "mean")


@dataclass(frozen=True)
class AttentionPeConfig(FineTuning):
    """A run of either stage.

    stage: `slabs`, the classifier with attention, or `series`, the recurrent reader on a finished slabs run's frozen
    features. slabs_run: that run. slabs: what is cut; budget: how many masks and patient labels may be used. network,
    objective: of stage one; without `encoder` or `architecture` its network is the ResNet, from random weights. pool:
    how stage one decides on a series: the `max` or `mean` of its slabs. reader: of stage two; positive: share of its
    draws that are positive series, null for that of the cohort; features: folder of kept features (OUTPUT.features).
    `windows` and `shots` play no part: slabs and budget take their place.
    """

    stage: str = "slabs"
    slabs_run: str = ""
    slabs: SlabsConfig = field(default_factory=SlabsConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    network: SlabNetworkConfig = field(default_factory=SlabNetworkConfig)
    objective: SlabObjective = field(default_factory=SlabObjective)
    pool: str = "max"
    reader: SeriesReaderConfig = field(default_factory=SeriesReaderConfig)
    positive: float | None = 0.5
    features: str = ""


def check_config(config: AttentionPeConfig) -> None:
    """Raise ConfigError for what neither stage can be run with."""
    if config.stage not in STAGES or config.pool not in POOLS:
        raise ConfigError(
            f"stage is one of {', '.join(STAGES)} and pool one of {', '.join(POOLS)}; got {config.stage!r} and "
            f"{config.pool!r}."
        )
    if len(config.data.targets) != 1 or not config.data.labels:
        raise ConfigError(
            "data.targets: this recipe learns one finding from a table of patient labels; give data.labels=TABLE and "
            f"data.targets=[NAME], got {config.data.targets}."
        )
    if config.windows != WindowsConfig() or config.shots != ShotsConfig() or config.unet is not None:
        raise ConfigError(
            "windows, shots and unet play no part in this recipe: say what is cut in `slabs` and how many labels are "
            "used in `budget`."
        )
    if config.validation.decision != "cls":
        raise ConfigError(
            f"validation.decision={config.validation.decision}: this model gives no mask, so that its probability "
            "decides: cls."
        )


def train_slabs(config: AttentionPeConfig, options: Options, device: torch.device) -> int:
    """Train, validate and freeze stage one; return the exit code. The same call again goes on."""
    if config.slabs_run:
        raise ConfigError("slabs_run names what stage=series starts from; leave it out, or say stage=series.")
    if not config.data.masks:
        raise ConfigError("data.masks: slabs are positive where a mask says so; name the folder that holds the masks.")
    prepared = prepare_slabs(config)
    spec = prepared.start.preprocessing.input
    architecture = attention_pe.describe_slabs(
        config.network, slices=spec.size_voxels[0], backbone=prepared.backbone if prepared.start.encoder else None
    )
    network = adapted(prepared.build(attention_pe.build_network, architecture), config)
    x = torch.empty((1, prepared.start.preprocessing.channels, *spec.size_voxels))
    flops = finetune_flops(0, forward_flops(network, x, spacing=torch.empty((1, 3))))
    record = prepared.record(KIND, architecture, prepared.cohort.targets, pool=config.pool)
    task = SlabAttention(network, config.objective)  # type: ignore[arg-type]
    return fine_tune(
        config, task, record, prepared, options, device, batches_from=slab_batches(config, prepared, device),
        flops=float(flops),
    )  # fmt: skip


def prepare_slabs(config: AttentionPeConfig) -> Prepared:
    """Return the labelled data within the budget and what stage one starts from, all of it checked."""
    check_slabs(config.slabs)
    cohort = within_budget(read_cohort(config.data), config.budget)
    if config.encoder or config.architecture is not None:
        start = starting_point(replace(config, windows=config.slabs.windows), cohort)
        start = replace(start, preprocessing=as_slabs(start.preprocessing))
        backbone: dict[str, object] = describe(start.backbone, mode=config.mode, lora=config.lora)
    else:
        start, backbone = _untrained(config), {}
    check_input(start.preprocessing)
    for split in sorted({sample.split for sample in cohort.samples}):
        check_samples(cohort.of(split), start.preprocessing)
    torch.manual_seed(config.seed)  # of the first weights
    return Prepared(cohort, start, backbone)


def as_slabs(preprocessing: Preprocessing) -> Preprocessing:
    """Return an encoder's preprocessing with series cut into slabs of its window. Raises ConfigError where none fit."""
    if preprocessing.input.spacing_mm is None:
        raise ConfigError("slabs: this encoder stretches a whole scan to its input; slabs need one with a spacing.")
    spec = replace(preprocessing.input, mode="slabs", overlap=0.0, skip_air=0.0)
    return replace(preprocessing, input=spec)


def slab_batches(
    config: AttentionPeConfig, prepared: Prepared, device: torch.device
) -> Callable[[int], Iterator[LabelledBatch]]:
    """Return what gives this rank's batches of slabs from a draw on."""
    batch = per_rank(config.batch_size, config.engine.accumulate)

    def batches_from(draw: int) -> Iterator[LabelledBatch]:
        """Yield this rank's batches from a draw on."""
        loader = build_slab_loader(
            prepared.cohort, "train", prepared.start.preprocessing, config.slabs, seed=config.seed, batch_size=batch,
            rank=distributed.rank(), world_size=distributed.world_size(), start_draw=draw, workers=config.workers,
            device=device,
        )  # fmt: skip
        return iter(loader)

    return batches_from


def _untrained(config: AttentionPeConfig) -> Start:
    """Return the beginning of a ResNet: random weights, and the input that the configuration describes."""
    given = config.input or InputConfig()
    if not given.windows or not config.slabs.size or not config.slabs.spacing_mm:
        raise ConfigError(
            "without encoder= the configuration says how slabs become input: give slabs.size, slabs.spacing_mm and "
            "input.windows, such as [{low: -1024, high: 500}]."
        )
    if config.mode != "full":
        raise ConfigError(f"mode={config.mode} keeps a pretrained encoder as it is, and this run has none: mode=full.")
    spec = InputSpec(
        mode="slabs",
        size_voxels=triple(config.slabs.size, "slabs.size"),
        spacing_mm=triple_of_floats(config.slabs.spacing_mm, "slabs.spacing_mm"),
        overlap=0.0,
        skip_air=0.0,
        foreground_above=-500.0 if given.modality == "CT" else None,
    )
    preprocessing = Preprocessing(windows=tuple(given.windows), input=spec, modality=given.modality)
    backbone: Any = config.network  # stands in task.json as `slabs`
    return Start(backbone, None, preprocessing, {}, "a ResNet from random weights")
