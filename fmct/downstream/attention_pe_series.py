"""Stage two of attention-guided embolism detection: a recurrent reader on a finished slabs run, by patient labels."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from fmct import distributed
from fmct.data.cohort import Cohort, read_cohort
from fmct.data.series_features import SeriesBatch, series_feature_batches
from fmct.data.slabs import check_samples, within_budget
from fmct.downstream.attention_pe import KIND, AttentionPeConfig
from fmct.downstream.run import COHORT, Prepared, fine_tune
from fmct.downstream.start import Start
from fmct.errors import ArtefactError, ConfigError, DataError
from fmct.inference.slab_features import SlabFeatures, weights_fingerprint
from fmct.models.adaptation import adapt
from fmct.models.slab_series import SlabSeriesNetwork
from fmct.publish.export import find_checkpoint
from fmct.publish.task_record import TaskRecord, is_downstream_run, read_task
from fmct.publish.weights import read_weights
from fmct.table_files import read_rows
from fmct.tasks import attention_pe
from fmct.tasks.attention_pe import SeriesReading
from fmct.train import checkpoint
from fmct.train.session import Options, per_rank


def train_series(config: AttentionPeConfig, options: Options, device: torch.device) -> int:
    """Train, validate and freeze stage two; return the exit code. The same call again goes on."""
    record, slabs = first_stage(config)
    check_same_slabs(config, record)
    cohort = within_budget(read_cohort(replace(config.data, masks="", mask_target="")), replace(config.budget, masks=0))
    check_samples(cohort.samples, record.preprocessing)
    refuse_seen(Path(config.slabs_run), cohort)
    architecture = attention_pe.describe_series(record.architecture, config.reader)
    torch.manual_seed(config.seed)  # of the reader's first weights
    network = attention_pe.build_network(architecture, in_channels=record.in_channels, spacing_mm=record.spacing_mm)
    assert isinstance(network, SlabSeriesNetwork)
    network.slabs.load_state_dict(slabs.state_dict())
    adapt(network, "frozen")
    features = SlabFeatures(
        config.features or f"{config.output}.features", network.slabs, record.preprocessing, cohort.store
    )
    pretrained = {**record.pretrained, "fingerprint": weights_fingerprint(slabs.state_dict()), "stage": "slabs"}
    start = Start(config.network, None, record.preprocessing, pretrained, f"frozen slabs of {config.slabs_run}")  # type: ignore[arg-type]
    prepared = Prepared(cohort, start, {})
    return fine_tune(
        config, SeriesReading(network), prepared.record(KIND, architecture, cohort.targets, pool=record.pool),
        prepared, options, device, batches_from=series_batches(config, cohort, features, device), flops=0.0,
    )  # fmt: skip


def first_stage(config: AttentionPeConfig) -> tuple[TaskRecord, torch.nn.Module]:
    """Return what a slabs run says of its network, and the network with its newest weights, in evaluation mode.

    Raises ConfigError where no such run is named, ArtefactError where what is named is another kind of run.
    """
    if not config.slabs_run:
        raise ConfigError("stage=series needs slabs_run=RUN, the folder of a finished run of stage=slabs.")
    run = Path(config.slabs_run)
    if not is_downstream_run(run):
        raise ArtefactError(f"{run}: no run of fmct finetune. slabs_run names the output of a run with stage=slabs.")
    record = read_task(run)
    if record.kind != KIND or record.architecture.get("reader"):
        what = "stage=series" if record.kind == KIND else f"kind {record.kind}"
        raise ArtefactError(f"{run}: a run of {what}; slabs_run names the output of a run with stage=slabs.")
    if record.targets != tuple(config.data.targets):
        raise ConfigError(f"{run}: learned {list(record.targets)}; data.targets says {config.data.targets}.")
    network, architecture = attention_pe.trained_predictor(
        record.architecture,
        read_weights(find_checkpoint(run) / checkpoint.PARAMETERS),
        in_channels=record.in_channels,
        spacing_mm=record.spacing_mm,
    )
    return record.with_architecture(architecture), network.requires_grad_(False)


def check_same_slabs(config: AttentionPeConfig, record: TaskRecord) -> None:
    """Raise ConfigError where the configuration describes other slabs than stage one cut, or another network."""
    if config.encoder or config.architecture is not None:
        raise ConfigError("stage=series reads the network of its slabs_run: leave out encoder and architecture.")
    spec, windows = record.preprocessing.input, list(config.input.windows) if config.input else []
    found = {
        "slabs.size": (list(config.slabs.size), list(spec.size_voxels)),
        "slabs.spacing_mm": (list(config.slabs.spacing_mm), list(spec.spacing_mm or ())),
        "input.windows": (windows, list(record.preprocessing.windows)),
    }
    other = [f"{key}={said} where it has {is_}" for key, (said, is_) in found.items() if said and said != is_]
    if other:
        raise ConfigError(
            f"{config.slabs_run}: its slabs are others than this configuration's ({'; '.join(other)}). Stage two reads "
            "what stage one learned: leave those keys out, or give both stages the same configuration."
        )


def refuse_seen(run: Path, cohort: Cohort) -> None:
    """Raise DataError when patients of other splits than train were in the training split of stage one."""
    seen = {row["patient"] for row in read_rows(run / COHORT) if row["split"] == "train"}
    mixed = sorted({sample.patient for sample in cohort.samples if sample.split != "train"} & seen)
    if mixed:
        raise DataError(
            f"{run}: stage one was trained on {len(mixed)} patients that are not in the split train now "
            f"({', '.join(mixed[:8])}): its features have seen their masks. Use the same splits in both stages."
        )


def series_batches(
    config: AttentionPeConfig, cohort: Cohort, features: SlabFeatures, device: torch.device
) -> Callable[[int], Iterator[SeriesBatch]]:
    """Return what gives this rank's batches of series from a draw on."""
    batch = per_rank(config.batch_size, config.engine.accumulate)

    def batches_from(draw: int) -> Iterator[SeriesBatch]:
        """Yield this rank's batches from a draw on."""
        return series_feature_batches(
            cohort.of("train"), features, seed=config.seed, batch_size=batch, rank=distributed.rank(),
            world_size=distributed.world_size(), start_draw=draw, positive=config.positive, device=device,
        )  # fmt: skip

    return batches_from
