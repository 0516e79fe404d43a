"""One training run in its folder: the wiring that every recipe shares, from a task and its batches to the last step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fmct import distributed
from fmct.errors import ConfigError
from fmct.precision import measure_peak
from fmct.train import checkpoint
from fmct.train.capture import replay
from fmct.train.checkpoint import Retention
from fmct.train.engine import Engine, EngineConfig
from fmct.train.engines import build_engine
from fmct.train.launch import from_rank_0, shorten_timeouts
from fmct.train.log import RunLog
from fmct.train.loop import RunState, fit
from fmct.train.optim import OptimConfig
from fmct.train.run import RunLock, cut_logs, holding, open_run
from fmct.train.schedule import Schedule
from fmct.train.signals import StopRequest

NEUTRAL = (
    "output",
    "store",
    "run",
    "evaluate",
    "export",
    "validation",
    "workers",
    "data.workers",
    "data.prefetch",
    "engine.kind",
    "engine.zero_stage",
)


@dataclass(frozen=True)
class RunConfig:
    """What does not change what is learned: saving, logging, time-outs.

    save_every: updates between checkpoints; the keep_last newest stay, and each whose step divides by keep_every.
    timeout_s: how long a rank waits for the others.
    progress_s: seconds between progress lines off a terminal. stop_on_alarm: end with exit code 77 on an alarm.
    measure_peak: measure this machine's matrix product at the start, so that timing.jsonl can say `mfu`.
    """

    save_every: int = 1000
    keep_last: int = 3
    keep_every: int = 0
    timeout_s: float = 300.0
    progress_s: float = 30.0
    stop_on_alarm: bool = False
    measure_peak: bool = True

    def __post_init__(self) -> None:
        if self.save_every < 1 or self.timeout_s <= 0:
            raise ConfigError("run: save_every must be at least 1 and timeout_s positive.")


@dataclass(frozen=True)
class Options:
    """What the command line says beside the configuration. See `fmct pretrain --help`."""

    fresh: bool = False
    allow_change: Sequence[str] = ()
    replay: str = ""


@dataclass(frozen=True)
class Plan:
    """A run as a recipe describes it.

    config: the resolved configuration, saved with the run. batches_from(draw) gives this rank's batches from a global
    sample number on. batch_size: samples per update over all ranks. corpus: content fingerprints by store path.
    flops_per_volume: of one training step for one sample. evaluate(step) is called on every rank
    after every evaluate_every updates, behind a checkpoint. describe(folder) writes more about the run, on rank 0.
    finished() ends the run before its last step when it is True, as early stopping does; asked on every rank alike.
    begin(engine) is called once, before the first update of a run that resumes nothing.
    """

    config: Any
    output: str
    task: nn.Module
    batches_from: Callable[[int], Iterator[Any]]
    schedule: Schedule
    steps: int
    batch_size: int
    engine: EngineConfig
    optim: OptimConfig
    run: RunConfig
    corpus: Mapping[str, str]
    warm_start: Callable[[], str] | None = None
    flops_per_volume: float | None = None
    evaluate: Callable[[int], None] | None = None
    evaluate_every: int = 0
    describe: Callable[[Path], None] | None = None
    draws_of: Callable[[Any], Sequence[int]] | None = None
    finished: Callable[[], bool] | None = None
    begin: Callable[[Engine], str] | None = None


def per_rank(batch_size: int, accumulate: int) -> int:
    """Return the samples of one forward pass on one rank. Raises ConfigError for an empty batch or an uneven share."""
    if min(batch_size, accumulate) < 1:
        raise ConfigError(
            f"batch_size={batch_size}, engine.accumulate={accumulate}: both are 1 or more; batch_size counts the "
            "samples of a whole update."
        )
    parts = distributed.world_size() * accumulate
    if batch_size % parts:
        raise ConfigError(
            f"batch_size={batch_size} does not divide over {distributed.world_size()} ranks × {accumulate} passes "
            f"(engine.accumulate). Take a multiple of {parts}: batch_size counts the samples of a whole update."
        )
    return batch_size // parts


def train(plan: Plan, options: Options, device: torch.device) -> int:
    """Run a plan to its last step and return 0. The same plan again goes on where the last checkpoint is.

    A run begins, in this order: from its own newest checkpoint that verifies; else from `warm_start`; else from the
    seed. Raises TrainingStopped and the other errors of fmct.errors.
    """
    if options.replay:
        return _replay(plan, options, device)
    folder = Path(plan.output)
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        lock = _take(stack, folder)
        from_rank_0(lambda: _open(folder, plan, options))
        found = from_rank_0(lambda: checkpoint.newest(folder / "checkpoints"))
        # Before the engine: DeepSpeed takes its fp32 partitions from the parameters as they are then.
        report = plan.warm_start() if found is None and plan.warm_start is not None else ""
        engine = build_engine(plan.task, config=plan.engine, optim=plan.optim, device=device)
        stack.callback(engine.close)
        shorten_timeouts(plan.run.timeout_s)
        state = RunState(batch_size=plan.batch_size)
        if found is not None:
            state.restore(checkpoint.restore(engine, found))
        elif plan.begin is not None:
            report = "; ".join(part for part in (report, plan.begin(engine)) if part)
        from_rank_0(lambda: cut_logs(folder, state.step))
        runlog = _log(plan, folder, engine, lock)
        stack.callback(runlog.close)
        _say_start(runlog, plan, state, found, report)
        fit(
            engine,
            plan.batches_from(state.draw) if state.step < plan.steps else iter(()),
            schedule=plan.schedule,
            state=state,
            until=plan.steps,
            log=runlog,
            folder=folder,
            save_every=plan.run.save_every,
            retention=Retention(plan.run.keep_last, plan.run.keep_every),
            stop=stop,
            evaluate=plan.evaluate,
            evaluate_every=plan.evaluate_every,
            stop_on_alarm=plan.run.stop_on_alarm,
            draws_of=plan.draws_of,
            finished=plan.finished,
        )
        early = "; validation improves no more" if state.step < plan.steps else ""
        runlog.say(f"{folder}: {state.step} of {plan.steps} steps done{early}.")
    return 0


def _take(stack: ExitStack, folder: Path) -> RunLock | None:
    """Hold the run folder until the stack closes; the lock on rank 0, None elsewhere."""
    held: list[RunLock | None] = []
    from_rank_0(lambda: held.append(stack.enter_context(holding(folder, rank=distributed.rank()))))
    return held[0] if held else None


def _say_start(runlog: RunLog, plan: Plan, state: RunState, found: Path | None, report: str) -> None:
    ranks = distributed.world_size()
    if found is not None:
        runlog.event("resume", step=state.step, draw=state.draw, world_size=ranks)
        runlog.say(f"resuming from {found} at step {state.step} of {plan.steps}")
    else:
        runlog.event("start", world_size=ranks, warm_start=report)
        runlog.say(f"starting {plan.steps} steps of {plan.batch_size} samples on {ranks} × {runlog.device}")
    if report:
        runlog.say(report)


def _open(folder: Path, plan: Plan, options: Options) -> None:
    open_run(
        folder,
        plan.config,
        corpus=plan.corpus,
        neutral=NEUTRAL,
        allow_change=options.allow_change,
        fresh=options.fresh,
    )
    if plan.describe is not None:
        plan.describe(folder)


def _log(plan: Plan, folder: Path, engine: Engine, lock: RunLock | None) -> RunLog:
    peak = None
    if plan.run.measure_peak and plan.flops_per_volume:
        peak = measure_peak(engine.device, engine.dtype) * distributed.world_size()
    return RunLog(
        folder,
        until=plan.steps,
        device=engine.device,
        enabled=distributed.rank() == 0,
        flops_per_volume=plan.flops_per_volume,
        peak_flops=peak,
        interval_s=plan.run.progress_s,
        on_step=lock.touch if lock is not None else None,
    )


def _replay(plan: Plan, options: Options, device: torch.device) -> int:
    if distributed.world_size() > 1:
        raise ConfigError("--replay runs on one process: leave out --nproc. It sees the whole batch of all ranks.")
    config = EngineConfig(kind="torch", precision=plan.engine.precision, accumulate=plan.engine.accumulate)
    engine = build_engine(plan.task, config=config, optim=plan.optim, device=device)
    print("\n".join(replay(engine, Path(options.replay), plan.batches_from)))
    return 0
