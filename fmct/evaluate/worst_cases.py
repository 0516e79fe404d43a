"""The patients a model is most wrong about, and slices of their scans with both masks outlined."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmct.errors import DataError
from fmct.evaluate.evaluation import Evaluation, of_target
from fmct.evaluate.figures import BLUE, ORANGE, WIDTH_IN, house_style, new_figure, png
from fmct.evaluate.figures_scan import PLANES, SOFT_TISSUE
from fmct.evaluate.segmentation import MASK_FROM, Segmented, read_map
from fmct.io.masks import MaskGrid, read_mask
from fmct.io.read import read_volume
from fmct.volume import Volume

WORST, MOST = 4, 16  # of one model and target; of all together
_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
Scans = Callable[[str], Volume | None]


@dataclass(frozen=True)
class Case:
    """A patient to look at: why, as a sentence; the series whose slices show it."""

    model: str
    target: str
    patient: str
    series: str
    why: str
    segmented: Segmented | None = None


def worst_cases(evaluation: Evaluation, *, count: int | None = None) -> list[Case]:
    """Return, for each model and target, the `count` patients of the largest error; of masks, those of `_worst_masks`.

    By default WORST of each, fewer where there are many models and targets.
    """
    count = count or max(1, min(WORST, MOST // (len(evaluation.models) * len(evaluation.targets))))
    cases = []
    for model, findings in evaluation.findings.items():
        every = {target: _masks_of(evaluation, model, target) for target in findings}
        for target, finding in findings.items():
            masks = every[target]
            s = finding.scores
            errors = np.where(s.failed, -1.0, np.abs(s.probabilities - s.labels))
            for k in np.argsort(-errors, kind="stable")[:count].tolist():
                if errors[k] < 0.5:
                    break  # on the right side of one half: not a case to explain
                truth = "positive" if s.labels[k] else "negative"
                series = _series_of(finding.scores.patients[k], masks) or s.patients[k]
                why = f"{truth}, probability {s.probabilities[k]:.2f}"
                cases.append(Case(model, target, s.patients[k], series, why, masks.get(series)))
        for name in [model, *(of_target(model, target) for target in findings)]:
            if name in evaluation.segmentation:
                cases += _worst_masks(name, evaluation.segmentation[name].series, count)
    return cases


def _masks_of(evaluation: Evaluation, model: str, target: str) -> dict[str, Segmented]:
    """Return {series: its mask} of a target, of the model's only one where masks are not told apart; {} without."""
    results = (evaluation.segmentation.get(name) for name in (of_target(model, target), model))
    found = next((result for result in results if result is not None), None)
    return {one.series: one for one in found.series} if found is not None else {}


def _worst_masks(model: str, masks: Sequence[Segmented], count: int) -> list[Case]:
    """Return the lowest Dice of series with a lesion, and the largest volumes predicted where there is none."""
    lesions = sorted((one for one in masks if one.scores.reference_ml > 0), key=lambda one: one.scores.dice)
    clear = [one for one in masks if one.scores.reference_ml == 0 and one.scores.predicted_ml > 0]
    clear.sort(key=lambda one: -one.scores.predicted_ml)
    told = [(one, f"Dice {one.scores.dice:.2f}") for one in lesions[:count]]
    told += [(one, f"no lesion, {one.scores.predicted_ml:.2f} ml predicted") for one in clear[:count]]
    return [Case(model, "masks", one.patient, one.series, why, one) for one, why in told]


def scans_of(place: str | Path) -> Scans:
    """Return a reader of scans by series or patient name: of a store, or of a folder of files named so.

    A scan is SERIES.nii.gz (or .nrrd, .mha), or a folder SERIES of DICOM files; None where there is none.
    """
    folder = Path(place)
    if (folder / "manifest.jsonl").is_file():
        from fmct.store.reader import Store

        store = Store.open(folder)
        return lambda name: next((store.volume(e) for e in store.entries if name in (e.id, e.patient)), None)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of scans, and no store.")

    def read(name: str) -> Volume | None:
        """Return the scan of this name."""
        found = next((folder / f"{name}{s}" for s in _SUFFIXES if (folder / f"{name}{s}").is_file()), folder / name)
        return read_volume(found) if found.exists() else None

    return read


def case_figure(cases: Sequence[Case], scans: Scans) -> tuple[bytes, list[str]]:
    """Return (a sheet, three planes a case, notes on the scans that are not on it); b"" when none was found."""
    drawn: list[tuple[Case, Volume]] = []
    notes = []
    for case in cases:
        try:
            volume = scans(case.series) or scans(case.patient)
        except DataError as error:  # a scan that cannot be drawn is no reason to lose the report
            notes.append(f"{case.series} is not shown: {error}")
            continue
        if volume is None:
            notes.append(f"{case.series} is not shown: no scan of this name, or of patient {case.patient}.")
        else:
            drawn.append((case, volume))
    notes = list(dict.fromkeys(notes))
    if not drawn:
        return b"", notes
    with house_style():
        columns = 2 if len(drawn) > 1 else 1
        lines = -(-len(drawn) // columns)
        figure = new_figure(WIDTH_IN, (1.62 if columns == 2 else 2.8) * lines)
        grid = figure.subplots(lines, 3 * columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for number, (case, volume) in enumerate(drawn):
            line, column = divmod(number, columns)
            _draw_case(grid[line, 3 * column : 3 * column + 3], case, volume)
        return png(figure), notes


def _draw_case(row: np.ndarray, case: Case, volume: Volume) -> None:
    predicted, reference = _masks(case.segmented, volume)
    at = _focus(volume, reference, predicted)
    low, high = SOFT_TISSUE if volume.units == "HU" else tuple(np.percentile(volume.voxels, [1, 99.5]).tolist())
    for axes, (plane, axis) in zip(row, PLANES, strict=True):
        steps = [s for number, s in enumerate(volume.spacing.tolist()) if number != axis]
        origin = "upper" if axis == 0 else "lower"
        axes.imshow(
            np.take(volume.voxels, at[axis], axis=axis),
            "gray",
            origin=origin,
            aspect=steps[0] / steps[1],
            vmin=low,
            vmax=high,
        )
        for mask, colour in ((reference, ORANGE), (predicted, BLUE)):
            if mask is not None and (part := np.take(mask, at[axis], axis=axis)).any() and not part.all():
                axes.contour(part, levels=[0.5], colors=colour, linewidths=0.9)
        if axis == 0:
            name = case.patient if case.series == case.patient else f"{case.patient} · {case.series}"
            axes.set_title(f"{name}\n{case.model}, {case.target}: {case.why}", fontsize=6.5, pad=3)
        else:
            axes.set_title(f"\n{plane}", fontsize=6.5, pad=3)


def _masks(segmented: Segmented | None, volume: Volume) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return (predicted, reference) as floats on the scan's grid, None where there is none or it lies elsewhere."""
    if segmented is None:
        return None, None
    predicted = read_map(segmented.predicted).voxels >= MASK_FROM if segmented.predicted else None
    grid = MaskGrid(volume.shape, volume.affine)
    reference = read_mask(segmented.reference, grid=grid).voxels > 0 if segmented.reference else None
    found = [
        m.astype(np.float32) if m is not None and m.shape == volume.shape else None for m in (predicted, reference)
    ]
    return found[0], found[1]


def _focus(volume: Volume, reference: np.ndarray | None, predicted: np.ndarray | None) -> tuple[int, int, int]:
    """Return the voxel of the planes: nearest the reference's centre, else the prediction's, else the middle."""
    for mask in (reference, predicted):
        if mask is not None and mask.any():
            z, y, x = np.argwhere(mask > 0).mean(axis=0)
            inside = np.argwhere(mask > 0)
            nearest = inside[np.argmin(((inside - [z, y, x]) ** 2).sum(axis=1))]
            return (int(nearest[0]), int(nearest[1]), int(nearest[2]))
    d, h, w = volume.shape
    return (d // 2, h // 2, w // 2)


def _series_of(patient: str, masks: Mapping[str, Segmented]) -> str:
    return next((series for series, one in masks.items() if one.patient == patient), "")
