"""From a run folder of `fmct finetune` to a model folder: the network that predicts, of the newest checkpoint."""

from pathlib import Path

from fmct.artefacts import read_json
from fmct.errors import ArtefactError, CheckpointError
from fmct.publish.decision import read_decision
from fmct.publish.export import find_checkpoint
from fmct.publish.layout import BASELINE
from fmct.publish.model_folder import write_model
from fmct.publish.run_facts import run_corpus, run_facts
from fmct.publish.task_record import FILE, PREDICTOR, is_downstream_run, read_task
from fmct.publish.weights import read_weights
from fmct.tasks.kinds import kind_named
from fmct.train import checkpoint
from fmct.train.run import load_config

CHOSEN_AT_THE_END = frozenset({"finding_heads"})
"""Kinds whose checkpoints hold the last weights, and RUN/predictor.safetensors the best."""


def export_model(
    run: str | Path,
    folder: str | Path,
    *,
    step: int | None = None,
    license_id: str = "other",
    overwrite: bool = False,
) -> Path:
    """Write the model folder of a downstream run and return it.

    The network comes from RUN/task.json and the checkpoint (of `step`, by default the newest that verifies), the
    decision from RUN/decision.json where validation wrote one. What only training needs (a second phase, projectors,
    LoRA factors) is not in the folder. Of a run that ends by choosing its weights (RUN/predictor.safetensors: the best
    heads of validation) those are written. Raises CheckpointError, ArtefactError, WeightsError.
    """
    run = Path(run)
    if not is_downstream_run(run):
        raise ArtefactError(f"{run}: holds no {FILE}; expected a run folder that `fmct finetune` wrote.")
    tree, record = load_config(run), read_task(run)
    found = find_checkpoint(run, step)
    chosen = run / PREDICTOR
    if record.kind in CHOSEN_AT_THE_END and not chosen.is_file():
        raise ArtefactError(
            f"{run}: the run has not ended: each target's best weights are put together after the last update. Run the "
            "same `fmct finetune` again; it goes on where it stopped."
        )
    if chosen.is_file() and step is not None:
        raise CheckpointError(f"{run}: kept the weights that validation chose, not one step's. Leave out --step.")
    kind = kind_named(record.kind, str(run / FILE))
    module, architecture = kind.trained_predictor(
        record.architecture,
        read_weights(chosen if chosen.is_file() else found / checkpoint.PARAMETERS),
        in_channels=record.in_channels,
        spacing_mm=record.spacing_mm,
    )
    state = read_json(found / checkpoint.STATE, "fmct-state", "1.0")["state"]
    return write_model(
        folder,
        module,
        record.with_architecture(architecture),
        decision=read_decision(run),
        facts=run_facts(run, tree, found, state, source="model", corpus=run_corpus(run, tree)),
        license_id=license_id,
        overwrite=overwrite,
        baseline=beside if (beside := run / BASELINE).is_file() else None,
    )


def parts_of(folder: Path) -> list[Path]:
    """Return the run folders right below one that a recipe of several runs wrote, such as one a finding or a seed."""
    return sorted(path.parent for path in folder.glob(f"*/{FILE}"))
