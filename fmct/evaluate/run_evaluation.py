"""The whole of `fmct evaluate`: tables and labels in, report, JSON and CSV out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fmct.evaluate.attention_overlays import looks_of
from fmct.evaluate.classification import Settings
from fmct.evaluate.evaluation import Evaluation, evaluate, read_model, with_masks
from fmct.evaluate.evaluation_report import write_evaluation
from fmct.evaluate.mask_folders import MaskSettings, measure_models
from fmct.evaluate.worst_cases import scans_of
from fmct.inference.predictions import said_with
from fmct.metrics.contrasts import Contrast


def run_evaluation(
    predictions: Sequence[str],
    labels: str | Path,
    output: str | Path,
    *,
    settings: Settings,
    split: str = "",
    by: Sequence[str] = (),
    contrasts: Sequence[str] | None = None,
    masks: MaskSettings | None = None,
    scans: str | Path | None = None,
    title: str = "Evaluation",
) -> tuple[Path, Evaluation]:
    """Evaluate one or more models' predictions (PATH or NAME=PATH each) and return (the page, what is in it).

    contrasts: as text, by default each model with the first. masks: also measure masks. scans: a store or folder of
    scans, for slices of the worst cases, and for attention maps where predictions came with some. What must be said of
    a model's predictions stands above everything. Raises DataError.
    """
    given = [read_model(text) for text in predictions]
    listed = [Contrast.parse(text) for text in contrasts] if contrasts else None
    images = scans_of(scans) if scans else None
    models = [model for model, _ in given]
    evaluation = evaluate(models, labels, settings=settings, split=split, by=by, contrasts=listed)
    said = [f"{model.name}: {note}" for model, folder in given for note in said_with(folder)]
    evaluation = replace(evaluation, notes=[*said, *evaluation.notes])
    if masks is not None:
        evaluation = with_masks(evaluation, measure_models(evaluation, given, masks))
    references = masks.references if masks else None
    looks = {model.name: looks_of(evaluation, model, folder, references=references) for model, folder in given}
    return write_evaluation(evaluation, output, title=title, scans=images, looks=looks), evaluation
