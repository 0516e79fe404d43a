"""The table of predictions: what `fmct predict` writes and `fmct evaluate` reads, one row per series and target.

Columns: patient, series, target, probability; and, where they apply, logit, decision (0 or 1), threshold, seed, fold,
split, error. A scan that could not be predicted has a row too: its probability is empty and `error` says why.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from fmct.artefacts import read_json
from fmct.errors import DataError
from fmct.table_files import SUFFIXES, read_rows, write_rows

RECORD, FORMAT = "predict.json", ("fmct-predictions", "1.0")  # beside the table of `fmct predict`
REQUIRED = ("patient", "series", "target", "probability")


@dataclass(frozen=True)
class Prediction:
    """One series and target. probability: 0..1, NaN where the scan failed (`error` says why).

    threshold: the frozen operating point, NaN where there is none; a probability equal to it is positive. decision: 0,
    1, or None; it wins over the threshold, which may be of another rule (mm³). seed, fold: of the model that predicted;
    split: of the series, such as val or test.
    """

    patient: str
    series: str
    target: str
    probability: float
    logit: float = math.nan
    decision: int | None = None
    threshold: float = math.nan
    seed: str = ""
    fold: str = ""
    split: str = ""
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether there is no probability."""
        return math.isnan(self.probability)


COLUMNS = tuple(field.name for field in fields(Prediction))


def write_predictions(path: str | Path, predictions: Iterable[Prediction]) -> None:
    """Write the table atomically, as .csv, .parquet or .jsonl; the same rows whatever the format."""
    write_rows(path, COLUMNS, [vars(prediction) for prediction in predictions])


def said_with(folder: Path) -> list[str]:
    """Return what must be said of predictions beside their numbers: that the encoder has seen test patients, say.

    From the record that `fmct predict` leaves beside its table, or beside those of a folder of several; [] without.
    """
    records = [path for path in (folder / RECORD, *sorted(folder.glob(f"*/{RECORD}"))) if path.is_file()]
    return list(dict.fromkeys(str(note) for path in records for note in read_json(path, *FORMAT).get("notes", ())))


def file_part(target: str) -> str:
    """Return a target's name as it stands in file names: letters, digits, `.`, `_` and `-`."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in target)


def predictions_in(folder: Path) -> list[Path]:
    """Return the table of a folder that `fmct predict` wrote, or those of the folders in it, one each."""
    for places in ([folder], sorted(path for path in folder.iterdir() if path.is_dir())):
        tables = [next(iter(sorted(p for p in place.glob("predictions.*") if p.suffix in SUFFIXES)), None)
                  for place in places]  # fmt: skip
        if any(tables):
            return [table for table in tables if table is not None]
    return []


def merged(tables: Mapping[str, Sequence[Prediction]]) -> list[Prediction]:
    """Return the rows of several tables of one model: of repeated runs, where targets recur, the table's name is the
    seed; tables of different targets are put together as they are.
    """
    targets = [frozenset(row.target for row in rows) for rows in tables.values()]
    recur = len(frozenset().union(*targets)) < sum(map(len, targets))
    return [replace(row, seed=name) if recur else row for name, rows in tables.items() for row in rows]


def read_predictions(path: str | Path) -> list[Prediction]:
    """Return the rows of a table of predictions. Columns beyond COLUMNS are left alone.

    Raises DataError, with the row, for a missing column, an id with spaces around it, a probability outside 0..1, a
    decision that is not 0 or 1, or the same series, target, seed and fold twice.
    """
    rows = read_rows(path)
    missing = [name for name in REQUIRED if name not in rows[0]]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(rows[0])}. A table of predictions has the "
            f"columns {', '.join(REQUIRED)} and may have {', '.join(COLUMNS[len(REQUIRED) :])}."
        )
    predictions = [_prediction(row, f"{path}: row {number}") for number, row in enumerate(rows, start=2)]
    _refuse_duplicates(predictions, path)
    return predictions


def _prediction(row: Mapping[str, str], where: str) -> Prediction:
    for name in ("patient", "series", "target"):
        check_name(row[name], name, where)
    probability = _number(row, "probability", where)
    if not math.isnan(probability) and not 0 <= probability <= 1:
        raise DataError(
            f"{where}: probability {row['probability']} is outside 0..1; logits have a column of their own."
        )
    threshold, decision = _number(row, "threshold", where), _number(row, "decision", where)
    if not math.isnan(decision) and decision not in (0, 1):
        raise DataError(f"{where}: decision {row['decision']}; expected 0, 1 or empty.")
    return Prediction(
        row["patient"],
        row["series"],
        row["target"],
        probability,
        logit=_number(row, "logit", where),
        decision=None if math.isnan(decision) else int(decision),
        threshold=threshold,
        **{name: row.get(name, "") for name in ("seed", "fold", "split", "error")},
    )


def check_name(name: str, column: str, where: str) -> None:
    """Raise DataError for an empty id, or one with spaces around it, which would match nothing."""
    if not name or name != name.strip():
        what = "is empty" if not name.strip() else f"is {name!r}, with spaces around it"
        raise DataError(f"{where}: {column} {what}; ids are compared letter by letter. Mend the table.")


def _number(row: Mapping[str, str], name: str, where: str) -> float:
    text = row.get(name, "").strip()
    if text.lower() in ("", "nan", "none", "null"):
        return math.nan
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{where}: {name} is {text!r}, which is no number (a point is the decimal mark).") from None
    if math.isinf(value) and name != "logit":
        raise DataError(f"{where}: {name} is {text}.")
    return value


def _refuse_duplicates(predictions: Sequence[Prediction], path: str | Path) -> None:
    seen: dict[tuple[str, ...], int] = {}
    for number, p in enumerate(predictions, start=2):
        first = seen.setdefault((p.patient, p.series, p.target, p.seed, p.fold), number)
        if first != number:
            raise DataError(
                f"{path}: rows {first} and {number} both predict {p.target} of series {p.series}, patient {p.patient}. "
                "Runs of several seeds or folds say so in the columns seed and fold."
            )
