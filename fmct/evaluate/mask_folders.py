"""Which folder of predicted masks belongs to which model, and the results of each."""

from collections.abc import Sequence
from pathlib import Path

from fmct.errors import DataError
from fmct.evaluate.evaluation import Evaluation, Model
from fmct.evaluate.segmentation import SegmentationResult, measure_masks
from fmct.metrics.lesions import MatchingRule

FOLDERS = ("probabilities", "masks")  # as fmct predict writes them; probabilities rank candidates, masks cannot


def measure_models(
    evaluation: Evaluation,
    given: Sequence[tuple[Model, Path]],
    references: Path,
    predicted: Sequence[Path] | None = None,
    *,
    ignore: Path | None = None,
    rule: MatchingRule | None = None,
    tolerance_mm: float = 2.0,
) -> dict[str, SegmentationResult]:
    """Return {model: its masks' result} of the series that the evaluation scored.

    given: each model and the folder of its table. predicted: a folder per model, in their order; by default
    `probabilities`, else `masks`, in the model's own folder. Raises DataError when there is none.
    """
    if predicted and len(predicted) != len(given):
        raise DataError(f"--masks-predicted: {len(predicted)} folders for {len(given)} models; give one each.")
    results = {}
    for number, (model, folder) in enumerate(given):
        chosen = predicted[number] if predicted else _own(model, folder)
        scored = {patient for f in evaluation.findings[model.name].values() for patient in f.scores.patients}
        patients = {p.series: p.patient for p in model.predictions if p.patient in scored}
        targets = {p.target for p in model.predictions}
        labels = {s: [evaluation.truth.of_series(t, p, s) for t in targets] for s, p in patients.items()}
        results[model.name] = measure_masks(
            model.name,
            chosen,
            references,
            patients,
            negatives=[series for series, known in labels.items() if set(known) == {0}],
            ignore=ignore,
            rule=rule,
            tolerance_mm=tolerance_mm,
            resamples=evaluation.settings.resamples,
            seed=evaluation.settings.seed,
        )
    return results


def _own(model: Model, folder: Path) -> Path:
    for name in FOLDERS:
        if (folder / name).is_dir():
            return folder / name
    raise DataError(
        f"{model.name}: no folder {' or '.join(FOLDERS)} beside its table in {folder}. Say where: --masks-predicted."
    )
