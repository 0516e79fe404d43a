"""Where a model looked: its attention over the scan, the reference outlined, the probability of each slab beside it.

Drawn for models whose predictions came with attention maps (`fmct predict --attention`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from fmct.errors import DataError
from fmct.evaluate.evaluation import Evaluation, Model
from fmct.evaluate.figures import BLUE, GREY, INK, SKY, VERMILION, WIDTH_IN, house_style, new_figure, png
from fmct.evaluate.figures_scan import PLANES
from fmct.evaluate.segmentation import masks_by_series, read_map
from fmct.evaluate.worst_cases import Scans
from fmct.io.masks import MaskGrid, read_mask
from fmct.table_files import read_rows
from fmct.volume import Volume

FOLDER, TABLE = "attention", "slabs"
MOST = 6  # of one model: half of them right, half of them wrong, where there are as many
ANGIOGRAPHY = (-100.0, 400.0)  # HU: clot, 50, stands off both fat and enhanced blood
_HEAT = LinearSegmentedColormap.from_list("heat", [(0, "#fff3b0"), (0.5, "#ff9d2e"), (1, VERMILION)])
_OPAQUE = 0.65


@dataclass(frozen=True)
class Look:
    """A series to show: why, as a sentence; its attention map; its reference mask and slabs where there are any.

    slabs: (z_low_mm, z_high_mm, probability) of each, RAS.
    """

    patient: str
    series: str
    why: str
    attention: Path
    reference: Path | None = None
    slabs: tuple[tuple[float, float, float], ...] = ()


def looks_of(
    evaluation: Evaluation, model: Model, folder: Path, *, references: Path | None = None, most: int = MOST
) -> list[Look]:
    """Return the series of a model to show: positives that it is surest of, then those that it is most wrong about.

    folder: where `fmct predict` wrote. [] where that holds no attention maps, or none of a scored patient.
    """
    maps = {path.name.partition(".")[0]: path for path in sorted((folder / FOLDER).glob("*.nii.gz"))}
    shown: list[Look] = []
    if not maps:
        return shown
    slabs = _slabs(folder)
    for target, finding in evaluation.findings[model.name].items():
        scores = finding.scores
        rows = [p for p in model.predictions if p.target == target and p.series in maps and not p.failed]
        best = {p.patient: p for p in sorted(rows, key=lambda p: p.probability)}  # the patient's highest
        known = [
            (best[patient], bool(label))
            for patient, label, failed in zip(scores.patients, scores.labels, scores.failed, strict=True)
            if patient in best and not failed
        ]
        several = target if len(evaluation.findings[model.name]) > 1 else ""
        drawn = _references(references, [p.series for p, _ in known], several)
        right = sorted((c for c in known if c[1]), key=lambda c: -c[0].probability)[: most - most // 2]
        wrong = sorted((c for c in known if c not in right), key=lambda c: -abs(c[0].probability - c[1]))
        for prediction, positive in [*right, *wrong[: most - len(right)]]:
            why = f"{target}: {'positive' if positive else 'negative'}, probability {prediction.probability:.2f}"
            name = prediction.series
            shown.append(
                Look(prediction.patient, name, why, maps[name], drawn.get(name), slabs.get((name, target), ()))
            )
    return shown[:most]


def attention_figure(looks: Sequence[Look], scans: Scans) -> tuple[bytes, list[str]]:
    """Return (a sheet, a row for each series: three planes through the attention's peak, and its slabs; notes).

    The bytes are empty when no scan was found.
    """
    drawn: list[tuple[Look, Volume, Volume]] = []
    notes = []
    for look in looks:
        try:
            volume = scans(look.series) or scans(look.patient)
            attention = read_map(look.attention)
        except DataError as error:  # a scan that cannot be drawn is no reason to lose the report
            notes.append(f"{look.series} is not shown: {error}")
            continue
        if volume is None:
            notes.append(f"{look.series} is not shown: no scan of this name, or of patient {look.patient}.")
        elif attention.shape != volume.shape:
            notes.append(f"{look.series} is not shown: its attention map is not on its scan's grid.")
        else:
            drawn.append((look, volume, attention))
    if not drawn:
        return b"", notes
    with house_style():
        figure = new_figure(WIDTH_IN, 1.95 * len(drawn))
        grid = figure.subplots(len(drawn), 4, squeeze=False, width_ratios=[1, 1, 1, 0.55])
        for row, (look, volume, attention) in zip(grid, drawn, strict=True):
            _draw_look(row, look, volume, attention)
        return png(figure), notes


def _draw_look(row: np.ndarray, look: Look, volume: Volume, attention: Volume) -> None:
    values, largest = attention.voxels, float(attention.voxels.max())
    reference = _reference(look, volume)
    peak = np.unravel_index(int(values.argmax()), values.shape) if largest > 0 else [n // 2 for n in values.shape]
    low, high = ANGIOGRAPHY if volume.units == "HU" else tuple(np.percentile(volume.voxels, [1, 99.5]).tolist())
    for axes, (plane, axis) in zip(row, PLANES, strict=False):
        steps = [s for number, s in enumerate(volume.spacing.tolist()) if number != axis]
        view = {"origin": "upper" if axis == 0 else "lower", "aspect": steps[0] / steps[1]}
        axes.set_axis_off()
        axes.imshow(np.take(volume.voxels, int(peak[axis]), axis=axis), "gray", vmin=low, vmax=high, **view)
        heat = np.take(values, int(peak[axis]), axis=axis)
        if largest > 0:
            axes.imshow(heat, _HEAT, vmin=0, vmax=1, alpha=_OPAQUE * np.clip(heat, 0, 1), **view)
        if reference is not None and (part := np.take(reference, int(peak[axis]), axis=axis)).any() and not part.all():
            axes.contour(part, levels=[0.5], colors=SKY, linewidths=1.1)
        name = look.patient if look.series == look.patient else f"{look.patient} · {look.series}"
        title = f"{name}\n{look.why}, peak {largest:.2f}" if axis == 0 else f"\n{plane}"
        axes.set_title(title, fontsize=6.5, pad=3)
    _draw_slabs(row[3], look, volume, int(peak[0]))


def _draw_slabs(axes: Axes, look: Look, volume: Volume, at: int) -> None:
    """Draw the probability of each slab at its height, and the plane's."""
    if not look.slabs:
        axes.set_axis_off()
        return
    low, high, probability = np.array(look.slabs).T
    axes.barh((low + high) / 2, probability, height=0.85 * (high - low), color=BLUE)
    axes.axhline(float(volume.affine[2, :3] @ [at, volume.shape[1] / 2, volume.shape[2] / 2] + volume.affine[2, 3]),
                 color=GREY, linewidth=0.7)  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_ylim(float(low.min()), float(high.max()))
    axes.set_xticks([0, 1])
    axes.set_yticks([])
    axes.set_title("\nby slab", fontsize=6.5, pad=3, color=INK)


def _reference(look: Look, volume: Volume) -> np.ndarray | None:
    if look.reference is None:
        return None
    found = read_mask(look.reference, grid=MaskGrid(volume.shape, volume.affine))
    return (found.voxels > 0).astype(np.float32) if found.shape == volume.shape else None


def _references(folder: Path | None, series: Sequence[str], target: str) -> Mapping[str, Path]:
    return masks_by_series(folder, series, target) if folder is not None and series else {}


def _slabs(folder: Path) -> dict[tuple[str, str], tuple[tuple[float, float, float], ...]]:
    """Return {(series, target): its slabs} of the table beside the predictions, {} without one."""
    table = next((p for p in sorted(folder.glob(f"{TABLE}.*")) if p.suffix in (".csv", ".parquet", ".jsonl")), None)
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for row in read_rows(table) if table else []:
        slab = (float(row["z_low_mm"]), float(row["z_high_mm"]), float(row["probability"]))
        found.setdefault((row["series"], row["target"]), []).append(slab)
    return {key: tuple(rows) for key, rows in found.items()}
