"""Which folder of predicted masks belongs to which model, and the results of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmct.errors import DataError
from fmct.evaluate.evaluation import Evaluation, Model, of_target
from fmct.evaluate.segmentation import SegmentationResult, masks_by_series, measure_masks
from fmct.metrics.lesions import MatchingRule

FOLDERS = ("probabilities", "masks")  # as fmct predict writes them; probabilities rank candidates, masks cannot


@dataclass(frozen=True)
class MaskSettings:
    """What masks are measured with. references: a folder. predicted: a folder per model, in their order; by default
    `probabilities`, else `masks`, in the model's own folder. ignore: regions that count neither way. targets: those
    whose masks are measured, SERIES_TARGET or SERIES/TARGET, where a model has several; by default those that have any,
    and where none has, one mask a series for all of them.
    """

    references: Path
    predicted: Sequence[Path] = ()
    ignore: Path | None = None
    targets: Sequence[str] = ()
    rule: MatchingRule | None = None
    tolerance_mm: float = 2.0


def measure_models(
    evaluation: Evaluation, given: Sequence[tuple[Model, Path]], settings: MaskSettings
) -> dict[str, SegmentationResult]:
    """Return {model: its masks' result} of the series that the evaluation scored.

    given: each model and the folder of its table. Targets with masks of their own have a result each (`of_target`).
    A model that gives attention maps alone has none. Raises DataError when there is no folder of masks, or none of
    them belongs to a target.
    """
    if settings.predicted and len(settings.predicted) != len(given):
        raise DataError(f"--masks-predicted: {len(settings.predicted)} folders for {len(given)} models; give one each.")
    results = {}
    for number, (model, folder) in enumerate(given):
        if not settings.predicted and _attends_only(folder):
            continue  # the references are outlined under its attention
        chosen = settings.predicted[number] if settings.predicted else _own(model, folder)
        known = sorted({p.target for p in model.predictions})
        strangers = sorted(set(settings.targets) - set(known))
        if strangers:
            raise DataError(f"--mask-target {strangers[0]}: {model.name} predicts {', '.join(known)}.")
        series = [p.series for p in model.predictions]
        drawn = [target for target in known if masks_by_series(settings.references, series, target)]
        for target in (settings.targets or drawn or [""]) if len(known) > 1 else [""]:
            name = of_target(model.name, target)
            results[name] = _measured(evaluation, model, chosen, settings, target, name)
    return results


def _measured(
    evaluation: Evaluation, model: Model, chosen: Path, settings: MaskSettings, target: str, name: str
) -> SegmentationResult:
    scored = {patient for f in evaluation.findings[model.name].values() for patient in f.scores.patients}
    patients = {p.series: p.patient for p in model.predictions if p.patient in scored}
    targets = {target} if target else {p.target for p in model.predictions}
    labels = {s: [evaluation.truth.of_series(t, p, s) for t in targets] for s, p in patients.items()}
    return measure_masks(
        name,
        chosen,
        settings.references,
        patients,
        negatives=[series for series, known in labels.items() if set(known) == {0}],
        ignore=settings.ignore,
        rule=settings.rule,
        tolerance_mm=settings.tolerance_mm,
        target=target,
        resamples=evaluation.settings.resamples,
        seed=evaluation.settings.seed,
    )


def _attends_only(folder: Path) -> bool:
    """Return whether predictions came with attention maps and without masks."""
    return (folder / "attention").is_dir() and not any((folder / name).is_dir() for name in FOLDERS)


def _own(model: Model, folder: Path) -> Path:
    for name in FOLDERS:
        if (folder / name).is_dir():
            return folder / name
    raise DataError(
        f"{model.name}: no folder {' or '.join(FOLDERS)} beside its table in {folder}. Say where: --masks-predicted."
    )
