"""Probes while a run trains: the `evaluate` hook. Rank 0 exports and probes; the others wait without a collective."""

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fmct import distributed
from fmct.artefacts import write_text
from fmct.errors import ConfigError, FmctError
from fmct.publish.export import export
from fmct.publish.load import load_encoder
from fmct.store.reader import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateConfig:
    """What is probed every `every` updates (0: nothing), as `fmct probe` does it.

    store: what to probe on, by default the run's first store. masks, mask_table, labels, target: as on the command
    line; with none of them the location probe. patients: whom to score (empty: cross-validation over those that the
    run does not see). seeds: random initialisations beside the encoder. limit_s: how long the other ranks wait.
    """

    every: int = 0
    store: str = ""
    masks: str = ""
    mask_table: str = ""
    labels: str = ""
    target: str = ""
    patients: list[str] = field(default_factory=list)
    seeds: int = 1
    limit_s: float = 3600.0

    def __post_init__(self) -> None:
        if self.every < 0 or self.seeds < 1:
            raise ConfigError("evaluate: every must not be negative and seeds at least 1.")


def evaluator(config: EvaluateConfig, run: str, store: str) -> Callable[[int], None] | None:
    """Return what to call after an update whose checkpoint is saved, on every rank; None when nothing is asked for.

    It writes RUN/evaluations/step-NNNNNN/probe-NAME.json and .txt and logs the tables. A probe that cannot be made
    costs a warning, not the run.
    """
    if not config.every:
        return None

    def evaluate(step: int) -> None:
        """Probe the checkpoint of `step`."""
        folder = Path(run) / "evaluations" / f"step-{step:06d}"
        done = folder / "done"
        if distributed.rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                _probe(config, Path(run), folder, config.store or store, step)
            except FmctError as error:
                log.warning("evaluation at step %d: %s", step, error)
            finally:
                write_text(done, "")
        wait_for(done, config.limit_s)

    return evaluate


def wait_for(path: Path, limit_s: float) -> None:
    """Wait until a file exists: a collective would run into its time-out. Raises FmctError after `limit_s` seconds."""
    until = time.monotonic() + limit_s
    while not path.exists():
        if time.monotonic() > until:
            raise FmctError(
                f"{path}: rank 0's evaluation took over {limit_s:.0f} s. Raise evaluate.limit_s or probe less."
            )
        time.sleep(0.1)


def _probe(config: EvaluateConfig, run: Path, folder: Path, store: str, step: int) -> None:
    # With SciPy and the readers of scans: seconds that no rank of a run without probes should wait for.
    from fmct.probes.probe import probe

    with tempfile.TemporaryDirectory() as temporary, Store.open(store) as opened:
        encoder = load_encoder(export(run, Path(temporary) / "encoder", step=step))
        reports = probe(
            encoder,
            opened,
            masks=config.masks or None,
            mask_table=config.mask_table or None,
            labels=config.labels or None,
            target=config.target or None,
            test=config.patients or None,
            seeds=config.seeds,
            output=folder,
        )
    for report in reports:
        log.info("evaluation at step %d\n%s", step, report)
