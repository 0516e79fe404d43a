"""Phase and seconds of a cohort's series, from columns of these names in its table of labels, joined by id."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fmct.data.cohort import Cohort
from fmct.data.label_table import UNKNOWN, LabelRow, told
from fmct.data.store_names import StoreNames
from fmct.errors import DataError
from fmct.models.contrast import MOST_SECONDS, PHASES
from fmct.table_files import read_rows
from fmct.tasks.contrast import LABELS

PRESENCE, SECONDS = LABELS[0], LABELS[-1]
_OF_PHASES = LABELS[1:-1]


def with_phases(cohort: Cohort, path: str | Path) -> Cohort:
    """Return a cohort of the one target `contrast` with LABELS as its targets; what the table does not say is NaN.

    A series without contrast is native, whatever the table says of its phase. Raises DataError that lists every fault
    with its line: a phase that is none of PHASES, seconds that are no such number, a native phase or a time that
    contradicts the label; and what StoreNames.labels refuses: a row twice, of two patients, or of a series unknown.
    """
    path = Path(path)
    rows = read_rows(path)
    column = next((name for name in ("series", "id", "file") if name in rows[0]), "")
    faults, parsed = [], []
    for line, row in enumerate(rows, start=2):
        labels, fault = _labels(row)
        if fault:
            faults.append((line, fault))
        parsed.append(
            LabelRow(line, row.get("patient", ""), row.get(column, "") if column else "", labels, row.get("split", ""))
        )
    if faults:
        raise DataError(told(path, faults, len(rows), "a table of contrast labels"))
    known, _ = StoreNames(cohort.store).labels(parsed, [s.entry for s in cohort.samples], LABELS, path)
    nothing = (UNKNOWN,) * len(LABELS)
    samples = [
        replace(sample, labels=(sample.labels[0], *known.get(sample.entry.id, nothing)[1:]))
        for sample in cohort.samples
    ]
    return replace(cohort, targets=LABELS, samples=tuple(samples))


def _labels(row: Mapping[str, str]) -> tuple[dict[str, float], str]:
    """Return ({label: value}, what is wrong with the row or "")."""
    presence = {"0": 0.0, "0.0": 0.0, "False": 0.0, "1": 1.0, "1.0": 1.0, "True": 1.0}.get(
        row.get(PRESENCE, "").strip(), UNKNOWN
    )
    phase, seconds = row.get("phase", "").strip().lower(), row.get(SECONDS, "").strip()
    if phase and phase not in PHASES:
        return {}, f"phase is {phase!r}; expected {', '.join(PHASES)}, or an empty cell for unknown"
    if phase and not math.isnan(presence) and (phase == "native") == bool(presence):
        return {}, f"phase is {phase} and {PRESENCE} is {presence:g}"
    try:
        time = float(seconds) if seconds else UNKNOWN
    except ValueError:
        time = math.inf
    if not math.isnan(time) and not 0 <= time <= MOST_SECONDS:
        return {}, f"seconds is {seconds!r}; expected 0 to {MOST_SECONDS:g} after injection, or an empty cell"
    if not math.isnan(time) and (presence == 0 or phase == "native"):
        return {}, f"seconds is {seconds} in a series without contrast; leave the cell empty"
    if presence == 0:
        phase = "native"
    of_phases = {name: float(name == f"phase_{phase}") if phase else UNKNOWN for name in _OF_PHASES}
    return {PRESENCE: presence, **of_phases, SECONDS: time}, ""
