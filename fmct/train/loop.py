"""The training loop, the only one."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmct import distributed
from fmct.errors import EXIT_COLLAPSED, EXIT_NON_FINITE, EXIT_PREEMPTED, TrainingStopped
from fmct.train import checkpoint
from fmct.train.capture import save_capture
from fmct.train.checkpoint import Retention, SaveFailed
from fmct.train.engine import Engine, Update
from fmct.train.log import RunLog
from fmct.train.schedule import Schedule
from fmct.train.signals import StopRequest

KEEP_THREE = Retention()
SKIPS_IN_A_ROW = 3
MISSED_SAVES_IN_A_ROW = 3


@dataclass
class RunState:
    """Where a run stands. draw: the next sample's global number; batch_size: samples per update over all ranks.

    step: updates applied. skipped: updates left out because a value was not finite; they use up their draws.
    """

    batch_size: int
    step: int = 0
    draw: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    missed_saves: int = 0

    def advance(self, update: Update) -> None:
        """Count an update, applied or skipped."""
        self.draw += self.batch_size
        self.step += update.applied
        self.skipped += not update.applied
        self.skipped_in_a_row = 0 if update.applied else self.skipped_in_a_row + 1

    def saved(self, engine: Engine) -> dict[str, Any]:
        """Return what a checkpoint keeps of it."""
        return {**asdict(self), "missed_saves": 0, "updates": engine.updates}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take step, draw and the counts of a checkpoint; the batch size stays this run's."""
        self.step, self.draw = int(saved["step"]), int(saved["draw"])
        self.skipped, self.skipped_in_a_row = int(saved["skipped"]), int(saved["skipped_in_a_row"])


def fit(
    engine: Engine,
    batches: Iterator[Any],
    *,
    schedule: Schedule,
    state: RunState,
    until: int,
    log: RunLog,
    folder: Path,
    save_every: int,
    retention: Retention = KEEP_THREE,
    stop: StopRequest | None = None,
    evaluate: Callable[[int], None] | None = None,
    evaluate_every: int = 0,
    stop_on_alarm: bool = False,
    draws_of: Callable[[Any], Sequence[int]] | None = None,
    finished: Callable[[], bool] | None = None,
) -> None:
    """Train from state.step to `until` applied updates; checkpoints go to `folder`/checkpoints.

    finished() is asked before each update, and True, on every rank alike, ends the run early behind a checkpoint.
    Raises TrainingStopped with its exit code when a signal asked for it (75; the state is saved, run again to go on),
    after three updates in a row that were not finite (76; a capture to replay is saved) or, with `stop_on_alarm`, when
    the task raises an alarm (77).
    """
    passes: list[Any] = []
    while state.step < until and not _early(finished):
        values = schedule.at(state.step)
        batch = _next(batches, log)
        passes.append(draws_of(batch) if draws_of else ())
        output = engine.forward(batch, values)
        engine.backward(output.loss)
        update = engine.step(values, stop=stop is not None and stop.requested)
        if update is None:
            continue
        first_draw, draws, passes = state.draw, [list(d) for d in passes], []
        state.advance(update)
        if update.applied:
            engine.task.after_update(values)
            log.step(state.step, update, values, volumes=state.batch_size, skipped=state.skipped)
        else:
            _skip(engine, state, update, values, draws, first_draw, log, folder)
        _heed_alarms(update, state, log, stop_on_alarm)
        evaluating = evaluate is not None and update.applied and evaluate_every and state.step % evaluate_every == 0
        last = state.step == until or _early(finished)
        due = update.applied and (state.step % save_every == 0 or last or evaluating)
        saved = (due or update.stop) and _save(engine, state, log, folder, retention)
        if update.stop and state.step < until:
            name = stop.name if stop is not None and stop.name else "a signal on another rank"
            kept = (
                "the state is saved" if saved else "the state could NOT be saved, an older checkpoint is what is left"
            )
            raise TrainingStopped(
                f"stopped at step {state.step} by {name}; {kept}. Run the same command again to go on.",
                exit_code=EXIT_PREEMPTED,
            )
        if evaluate is not None and evaluating:
            evaluate(state.step)


def _early(finished: Callable[[], bool] | None) -> bool:
    return finished is not None and finished()


def _next(batches: Iterator[Any], log: RunLog) -> Any:
    start = time.perf_counter()
    batch = next(batches)
    log.waited(time.perf_counter() - start)
    return batch


def _save(engine: Engine, state: RunState, log: RunLog, folder: Path, retention: Retention) -> bool:
    """Save and return True; on failure warn and return False, but after three failures in a row raise."""
    log.sync()
    parent = folder / "checkpoints"
    try:
        checkpoint.save(parent, engine, state.saved(engine))
    except SaveFailed as error:
        state.missed_saves += 1
        log.event("save-failed", step=state.step, reason=str(error))
        log.say(f"WARNING: {error} Training goes on; the next save is tried in its turn. Free some space.")
        if state.missed_saves >= MISSED_SAVES_IN_A_ROW:
            raise
        return False
    state.missed_saves = 0
    if distributed.rank() == 0:
        try:
            checkpoint.retain(parent, retention)
        except OSError as error:
            log.say(f"WARNING: old checkpoints could not be removed ({error}); they stay.")
    return True


def _skip(
    engine: Engine,
    state: RunState,
    update: Update,
    values: dict[str, float],
    draws: list[list[int]],
    first_draw: int,
    log: RunLog,
    folder: Path,
) -> None:
    """Name the samples of an update that was left out; the third in a row ends the run with a capture."""
    parts = distributed.gather_objects((update.samples, draws))
    samples = [list(part) for part, _ in parts]
    facts = {"step": state.step, "draw": first_draw, "draws": [part for _, part in parts], "samples": samples}
    log.event("non-finite", in_a_row=state.skipped_in_a_row, loss=update.loss, terms=update.terms, **facts)
    named = ", ".join(dict.fromkeys(name for part in samples for name in part)) or "not named by the task"
    log.say(
        f"WARNING: after step {state.step} a loss or gradient was not finite; the update is skipped. Samples: {named}"
    )
    if state.skipped_in_a_row < SKIPS_IN_A_ROW:
        return
    try:
        capture = str(save_capture(folder, engine, state.saved(engine), values=values, facts=facts))
    except SaveFailed as error:
        capture = f"(not written: {error})"
    raise TrainingStopped(
        f"{SKIPS_IN_A_ROW} updates in a row were not finite after step {state.step}. No parameter was changed by them, "
        f"and the checkpoints are sound. Look at what happened with: --replay {capture}",
        exit_code=EXIT_NON_FINITE,
    )


def _heed_alarms(update: Update, state: RunState, log: RunLog, stop_on_alarm: bool) -> None:
    for alarm in update.alarms:
        log.event("alarm", step=state.step, alarm=alarm)
        log.say(f"ALARM at step {state.step}: {alarm}")
    if update.alarms and stop_on_alarm:
        raise TrainingStopped(f"stopped at step {state.step}: {'; '.join(update.alarms)}", exit_code=EXIT_COLLAPSED)
