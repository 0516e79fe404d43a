"""`fmct evaluate` for lesion detectors: a folder of predictions beside reference masks, stage by stage."""

from pathlib import Path

import numpy as np

from fmct.artefacts import read_json
from fmct.config import build
from fmct.errors import DataError
from fmct.lesions.candidates import read_candidates
from fmct.lesions.predict import FORMAT, LABELS, RECORD
from fmct.lesions.references import free_series, mask_on_scan, read_whole, reference_files
from fmct.lesions.reporting import Case, report
from fmct.lesions.settings import EvaluateConfig
from fmct.table_files import read_rows


def is_lesion_prediction(folder: Path) -> bool:
    """Return whether a folder holds predictions of a lesion detector."""
    return (folder / RECORD).is_file()


def rule_recorded(folder: Path) -> EvaluateConfig:
    """Return what counts as found by the model that predicted: its run's rule. Raises ArtefactError."""
    record = read_json(folder / RECORD, *FORMAT)
    return build(EvaluateConfig, record.get("match", {}), f"{folder / RECORD}: match")


def judge_predictions(
    folder: str | Path,
    references: str | Path,
    out: str | Path,
    *,
    config: EvaluateConfig,
    title: str,
    seed: int = 0,
    labels: str | Path | None = None,
    ignore: str | Path | None = None,
) -> str:
    """Write OUT/report.html, table.md, results.json and candidates.csv, and return the tables as text.

    references: masks, named by series (SERIES.nii.gz or SERIES_….nii.gz), or lying as the scans lay (sources.csv): in
    a folder of the same name, called as the scan plus `_…`. A mask may hold part of its scan's grid alone; what lies
    outside it is none. labels: a table (patient, perhaps series, and the model's target) whose series with 0 have no
    lesion, so that they need no mask. A predicted series with neither is not judged, and the text says how many.
    ignore: masks, named likewise, of regions that count neither way. Raises DataError when no series can be judged, and
    for a mask whose voxels are not the scan's.
    """
    folder, out = Path(folder), Path(out)
    record = read_json(folder / RECORD, *FORMAT)
    rows = read_rows(folder / "predictions.csv")
    failed = {row["series"] for row in rows if row["error"]}
    chosen = {row["series"]: row["patient"] for row in rows if not config.split or row["split"] == config.split}
    free = free_series(Path(labels), chosen, record["target"]) - failed if labels else set()
    files = reference_files(folder, Path(references), list(chosen), needed=not free)
    regions = reference_files(folder, Path(ignore), list(chosen), needed=True) if ignore else {}
    candidates = read_candidates(folder / "candidates.csv")
    cases = []
    for series in (name for name in chosen if name in files or name in free):
        own = [c for c in candidates if c.series == series]
        if series in failed:
            lesions, spacing, _ = read_whole(files[series])
            nothing = np.zeros(lesions.shape, dtype=np.int64)
            cases.append(Case(chosen[series], series, lesions > 0, nothing, [], spacing))
            continue
        found, spacing, affine = read_whole(folder / LABELS / f"{series}.nii.gz")
        truth, doubtful = (mask_on_scan(part.get(series), found.shape, affine) for part in (files, regions))
        lesions = np.zeros(found.shape, dtype=bool) if truth is None else truth
        if series in free and lesions.any():
            raise DataError(f"{labels}: {record['target']} of {series} is 0, and {files[series]} shows one.")
        cases.append(Case(chosen[series], series, lesions, found, own, spacing, ignore=doubtful))
    out.mkdir(parents=True, exist_ok=True)
    text = report(out, cases, config, title=title, lesion_sign=record["lesion_sign"], seed=seed)
    missed, left = sum(case.series in failed for case in cases), len(chosen) - len(cases)
    if missed:
        text += f"\n{missed} series could not be predicted; their lesions count as missed.\n"
    if left:
        text += f"\n{left} predicted series have no reference mask and are not judged.\n"
    return text
