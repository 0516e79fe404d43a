"""Self-distillation on CT: DINO, iBOT, KoLeo, Gram and voxel reconstruction of one 3D vision transformer.

The same command again resumes: fmct pretrain configs/pretrain/vit_base.yaml store=STORE output=RUN --nproc 8
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from fmct import distributed
from fmct.config import MISSING
from fmct.data.corpus import chosen_stores, fingerprints
from fmct.data.masking import MaskingConfig
from fmct.data.pretrain import DataConfig, ViewBatch, build_loader, loader_settings
from fmct.data.view_config import ViewsConfig
from fmct.models.encoder import EncoderConfig, build_encoder
from fmct.models.flops import self_distillation_flops
from fmct.probes.during_training import EvaluateConfig, evaluator
from fmct.publish.export import ExportConfig
from fmct.publish.run_facts import write_environment
from fmct.publish.warm_start import warm_start
from fmct.ssl.build import SelfDistillationConfig, build_self_distillation
from fmct.ssl.self_distillation import TERMS
from fmct.train.engine import EngineConfig
from fmct.train.optim import OptimConfig
from fmct.train.schedule import Schedule, ScheduleConfig, scaled_learning_rate
from fmct.train.session import Options, Plan, RunConfig, per_rank, train


@dataclass(frozen=True)
class SchedulesConfig:
    """What changes over the run; dino … pixel schedule the weight of that term and override `objective.weights`."""

    learning_rate: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(peak=1e-3, start=0.0, end=1e-6, warmup=0.1, freeze=0.01)
    )
    weight_decay: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(peak=0.04, end=0.4))
    momentum: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(peak=0.992, end=1.0))
    teacher_temperature: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(peak=0.07, start=0.04, warmup=0.3, kind="constant")
    )
    dino: ScheduleConfig | None = None
    ibot: ScheduleConfig | None = None
    koleo: ScheduleConfig | None = None
    gram: ScheduleConfig | None = None
    pixel: ScheduleConfig | None = None


@dataclass(frozen=True)
class Config:
    """A pretraining run. batch_size: samples per update over all ranks. store: short for one entry in data.stores.

    The peak learning rate is schedules.learning_rate.peak times learning_rate_rule's factor of the batch size. init:
    an encoder or run folder to start from; init_allow: names (prefixes) of tensors that may differ there.
    """

    recipe: str = "pretrain.dino"
    output: str = MISSING
    store: str = ""
    seed: int = 0
    steps: int = MISSING
    batch_size: int = MISSING
    learning_rate_rule: str = "none"
    init: str = ""
    init_allow: list[str] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    objective: SelfDistillationConfig = field(default_factory=SelfDistillationConfig)
    schedules: SchedulesConfig = field(default_factory=SchedulesConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)


def main(config: Config, options: Options, device: torch.device) -> int:
    """Train, and return the exit code."""
    return train(plan(config, device), options, device)


def plan(config: Config, device: torch.device) -> Plan:
    """Return the run that a configuration describes."""
    stores = chosen_stores(config.store, config.data.stores)
    views, local, batch = config.views, config.views.local_views, per_rank(config.batch_size, config.engine.accumulate)
    torch.manual_seed(config.seed)
    encoder = build_encoder(config.encoder, views.channels, seed=config.seed)
    scheduled = {name: getattr(config.schedules, name) for name in TERMS if getattr(config.schedules, name)}
    task = build_self_distillation(encoder, config.objective, scheduled=list(scheduled))

    def batches_from(draw: int) -> Iterator[ViewBatch]:
        """Yield this rank's batches from a draw on."""
        return iter(build_loader(
            stores, views, config.masking, seed=config.seed, batch_size=batch, patch_size=encoder.patch_size,
            rank=distributed.rank(), world_size=distributed.world_size(), start_draw=draw, device=device,
            **loader_settings(config.data),
        ))  # fmt: skip

    flops = self_distillation_flops(
        config.encoder, in_channels=views.channels, global_size=views.global_views.size,
        local_size=local.size if local.count else None, global_views=views.global_views.count, local_views=local.count,
        masked_share=config.masking.probability * sum(config.masking.ratio) / 2,
        **{key: getattr(config.objective.dino_head, key) for key in ("hidden_dim", "bottleneck_dim", "num_prototypes")},
    )  # fmt: skip
    factor = scaled_learning_rate(1.0, config.batch_size, config.learning_rate_rule)
    named = {f"weight/{name}": value for name, value in scheduled.items()}
    named |= {name: value for name, value in vars(config.schedules).items() if name not in TERMS}
    return Plan(
        config=config, output=config.output, task=task, batches_from=batches_from, steps=config.steps,
        schedule=Schedule(named, total=config.steps, learning_rate_factor=factor), batch_size=config.batch_size,
        engine=config.engine, optim=config.optim, run=config.run, corpus=fingerprints(stores), flops_per_volume=flops,
        warm_start=(lambda: warm_start(task, config.init, allow=config.init_allow)) if config.init else None,
        draws_of=lambda views: views.draws.tolist(), describe=write_environment,
        evaluate=evaluator(config.evaluate, config.output, stores[0].path if stores else ""),
        evaluate_every=config.evaluate.every,
    )  # fmt: skip
