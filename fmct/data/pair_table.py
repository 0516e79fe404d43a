"""The pairs table: which scan has a paired one, how they were registered, and how well. Every row is checked at once.

Columns: `nct` (or `series`), the scan that is used alone later; `ctpa` (or `paired`), its paired scan of another phase
or modality, empty where there is none; and as far as known `patient`, `mask`, `annotated` (the scan that the mask was
drawn on: nct or ctpa), `label`, `minutes` (paired scan's time minus the other's), `registration` (identity, given,
rigid or rigid+bspline), `lung_dice`, `vessel_dice`, `min_jacobian`, `overlap`, `heart_hu` (the paired CT's median in
the heart), `identical` (1: both hold the same voxels), `failure` (why registration gave nothing), `pair_weight` (in
place of the time tier's), `split`. For the registration: `transform` (a file, for given) and `heart` (mask of the heart
or pulmonary trunk in the paired scan).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fmct.errors import DataError
from fmct.registration.pair_quality import PairPolicy, PairQuality
from fmct.table_files import read_rows, write_rows

REGISTRATIONS = ("identity", "given", "rigid", "rigid+bspline")
COLUMNS = (
    "patient",
    "nct",
    "ctpa",
    "mask",
    "annotated",
    "label",
    "minutes",
    "registration",
    "lung_dice",
    "vessel_dice",
    "min_jacobian",
    "overlap",
    "heart_hu",
    "identical",
    "failure",
    "pair_weight",
)
_ALIASES = {"series": "nct", "paired": "ctpa"}
_UNKNOWN = {"", "na", "nan", "n/a", "none", "unknown", "?"}
_MOST_LISTED = 12


@dataclass(frozen=True)
class PairRow:
    """One row, typed. line: its line in the file. Texts are "" and numbers None where the table says nothing."""

    line: int
    nct: str
    ctpa: str = ""
    patient: str = ""
    mask: str = ""
    annotated: str = ""
    heart: str = ""
    registration: str = ""
    transform: str = ""
    split: str = ""
    label: float | None = None
    pair_weight: float | None = None
    quality: PairQuality = field(default_factory=PairQuality)

    @property
    def mask_is_inherited(self) -> bool:
        """Whether a mask comes from the paired scan, or may: it falls with the pair."""
        return bool(self.ctpa) and self.annotated != "nct"

    @property
    def name(self) -> str:
        """The patient for messages, the scan where no patient is named."""
        return self.patient or self.nct


def read_pair_table(path: str | Path, *, policy: PairPolicy | None = None) -> list[PairRow]:
    """Return the rows of a pairs table: CSV, Parquet or JSON lines.

    Raises DataError that lists every faulty row: a scan without name or given twice, a value that is no number, a
    patient in two splits or with two labels, a mask on a patient of label 0, a mask of unstated phase, a paired scan
    that lies further before the other than `policy.most_minutes_before`.
    """
    path, policy = Path(path), policy or PairPolicy()
    faults: list[tuple[int, str]] = []
    rows = [_row(line, cells, faults) for line, cells in _cells(path)]
    for check in (_check_names, _check_masks, _check_patients):
        check(rows, faults)
    for row in rows:
        minutes = row.quality.minutes
        if row.ctpa and minutes is not None and minutes < -policy.most_minutes_before:
            faults.append(
                (
                    row.line,
                    f"patient {row.name}: the paired scan was made {-minutes:g} minutes before the other one (at most "
                    f"{policy.most_minutes_before:g}: contrast agent would still be in it)",
                )
            )
    if faults:
        raise DataError(_told(path, faults, len(rows)))
    return rows


def write_pair_table(path: str | Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as a pairs table: the known columns first, then whatever else the rows hold; None is empty."""
    extra = [key for row in rows for key in row if key not in COLUMNS]
    plain = [{key: int(v) if isinstance(v, bool) else v for key, v in row.items()} for row in rows]
    write_rows(path, [*COLUMNS, *dict.fromkeys(extra)], plain)


def _cells(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return (line, {column: text}) of every row. Raises DataError when the file is no pairs table."""
    rows = read_rows(path)
    columns = [_ALIASES.get(name.strip(), name.strip()) for name in rows[0]]
    if not {"nct", "ctpa"} <= set(columns) or len(set(columns)) < len(columns):
        raise DataError(
            f"{path}: a pairs table needs the columns nct and ctpa (or series and paired), each once; found "
            f"{', '.join(rows[0])}."
        )
    return [
        (line, dict(zip(columns, (cell.strip() for cell in row.values()), strict=True)))
        for line, row in enumerate(rows, start=2)
    ]


def _row(line: int, cells: dict[str, str], faults: list[tuple[int, str]]) -> PairRow:
    def _number(name: str, allowed: Callable[[float], bool], expected: str) -> float | None:
        text = cells.get(name, "")
        if text.lower() in _UNKNOWN:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isfinite(value) and allowed(value):
            return value
        faults.append((line, f"{name} is {text!r}; expected {expected}, or nothing where it is unknown"))
        return None

    def _word(name: str, allowed: Sequence[str]) -> str:
        text = cells.get(name, "").lower()
        if text and text not in allowed:
            faults.append((line, f"{name} is {text!r}; expected one of {', '.join(allowed)}, or nothing"))
            return ""
        return text

    registration = _word("registration", REGISTRATIONS)
    label = _number("label", lambda v: v in (-1, 0, 1), "0 or 1 (−1: unknown)")
    quality = PairQuality(
        lung_dice=_number("lung_dice", lambda v: 0 <= v <= 1, "a number from 0 to 1"),
        vessel_dice=_number("vessel_dice", lambda v: 0 <= v <= 1, "a number from 0 to 1"),
        min_jacobian=_number("min_jacobian", lambda v: True, "a number"),
        minutes=_number("minutes", lambda v: True, "a number of minutes"),
        overlap=_number("overlap", lambda v: 0 <= v <= 1, "a number from 0 to 1"),
        heart_hu=_number("heart_hu", lambda v: True, "a number of HU"),
        same_examination=registration == "identity",
        identical=_number("identical", lambda v: v in (0, 1), "0 or 1") == 1,
        failure=cells.get("failure", ""),
    )
    return PairRow(
        line=line,
        nct=cells.get("nct", ""),
        ctpa=cells.get("ctpa", ""),
        patient=cells.get("patient", ""),
        mask=cells.get("mask", ""),
        annotated=_word("annotated", ("nct", "ctpa")),
        heart=cells.get("heart", ""),
        registration=registration,
        transform=cells.get("transform", ""),
        split=cells.get("split", ""),
        label=None if label == -1 else label,
        pair_weight=_number("pair_weight", lambda v: v >= 0, "a number ≥ 0"),
        quality=quality,
    )


def _check_names(rows: Sequence[PairRow], faults: list[tuple[int, str]]) -> None:
    first: dict[str, int] = {}
    for row in rows:
        if not row.nct:
            faults.append((row.line, "no scan is named in nct"))
        elif first.setdefault(row.nct, row.line) != row.line:
            faults.append((row.line, f"the scan {row.nct} has another row in line {first[row.nct]}"))


def _check_masks(rows: Sequence[PairRow], faults: list[tuple[int, str]]) -> None:
    for row in rows:
        if row.mask and row.label == 0:
            faults.append((row.line, f"patient {row.name} has label 0 and the mask {row.mask}"))
        if row.mask and row.ctpa and not row.annotated:
            faults.append((row.line, "annotated is empty: say on which scan the mask was drawn, nct or ctpa"))
        if row.annotated == "ctpa" and not row.ctpa:
            faults.append((row.line, "the mask was drawn on the paired scan, but no paired scan is named"))


def _check_patients(rows: Sequence[PairRow], faults: list[tuple[int, str]]) -> None:
    labels: dict[str, dict[float, int]] = defaultdict(dict)
    splits: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows:
        if not row.patient:
            continue
        if row.label is not None:
            labels[row.patient].setdefault(row.label, row.line)
        if row.split:
            splits[row.patient].setdefault(row.split, row.line)
    for kind, found in (("labels", labels), ("splits", splits)):
        for patient, values in found.items():
            if len(values) > 1:
                where = ", ".join(f"{value} in line {line}" for value, line in values.items())
                faults.append((max(values.values()), f"patient {patient} has two {kind}: {where}"))


def _told(path: Path, faults: Sequence[tuple[int, str]], rows: int) -> str:
    listed = [f"line {line}: {text}" for line, text in sorted(faults)[:_MOST_LISTED]]
    more = f"; and {len(faults) - _MOST_LISTED} more" if len(faults) > _MOST_LISTED else ""
    return f"{path}: {len(faults)} faults in a pairs table of {rows} rows. {'; '.join(listed)}{more}. Mend these rows."
