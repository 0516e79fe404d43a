"""Who a scan belongs to: a table, a pattern in the path, or the DICOM PatientID."""

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from fmct.errors import ConfigError


class PatientNames:
    """Names the patient of a scan by its path and PatientID. The names stay in memory; stores hold keyed hashes."""

    def __init__(self, table: str | None = None, regex: str | None = None) -> None:
        """`table`: CSV with the columns file and patient. `regex`: the patient is its group 1, else the match."""
        self._table = read_table(Path(table)) if table else {}
        try:
            self._regex = re.compile(regex) if regex else None
        except re.error as error:
            raise ConfigError(f"patient_regex={regex}: not a regular expression ({error}).") from None

    def of(self, name: str, header: str | None) -> str | None:
        """Return the patient of a scan: from the table, else the header, else the pattern, else None.

        name: path relative to its source. The table knows a file by this path, a part of it from any folder on down,
        its file name, or a folder that holds it.
        """
        for key in _keys(name):
            if key in self._table:
                return self._table[key]
        if header and header.strip():
            return header.strip()
        found = self._regex.search(name) if self._regex else None
        if found is not None:
            return found.group(1) if found.re.groups and found.group(1) else found.group(0)
        return None

    def unused(self, names: Iterable[str]) -> int:
        """Return how many rows of the table name none of these scans: typing mistakes, mostly."""
        used = {key for name in names for key in _keys(name)}
        return sum(key not in used for key in self._table)


def _keys(name: str) -> list[str]:
    """Return the spellings under which a table may name a scan, the most particular first."""
    parts = PurePosixPath(name).parts
    whole = ["/".join(parts[i:]) for i in range(len(parts))]
    folders = ["/".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]
    return [*whole, *folders, *reversed(parts[:-1])]


def read_table(path: Path) -> Mapping[str, str]:
    """Return {file: patient} of a CSV with those columns (comma or semicolon, byte-order mark allowed).

    Raises ConfigError when it is not one, or gives one file two patients.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"patients={path}: not readable ({type(error).__name__}).") from None
    delimiter = ";" if lines and lines[0].count(";") > lines[0].count(",") else ","
    rows = list(csv.DictReader(lines, delimiter=delimiter))
    if not rows or not {"file", "patient"} <= set(rows[0]):
        found = ", ".join(str(column) for column in rows[0]) if rows else "no rows"
        raise ConfigError(f"patients={path}: expected a CSV with the columns file and patient, found {found}.")
    table: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        file = PurePosixPath((row["file"] or "").strip().replace("\\", "/")).as_posix()
        patient = (row["patient"] or "").strip()
        if file == "." or not patient:
            raise ConfigError(f"patients={path}: line {number}: file or patient is empty.")
        if table.setdefault(file, patient) != patient:
            raise ConfigError(f"patients={path}: line {number}: this file has another patient in an earlier line.")
    return table
