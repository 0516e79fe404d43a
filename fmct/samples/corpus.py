"""The demo's corpus: the embedded scans in a store, split by patient, twelve patients held out."""

import csv
from concurrent.futures import Executor
from pathlib import Path

from fmct.artefacts import write_text
from fmct.store.fingerprint import PseudonymKey
from fmct.store.ingest import IngestConfig, IngestSummary, ingest
from fmct.store.progress import Reporter
from fmct.store.reader import Store

SAMPLES = Path(__file__).resolve().parent
MASKS = SAMPLES / "sts"
# The samples are public, so their pseudonyms hide nothing: a fixed key makes the demo the same on every machine.
KEY = PseudonymKey(bytes(range(32)))


def make_store(path: Path, *, progress: Reporter | None = None, executor: Executor | None = None) -> IngestSummary:
    """Ingest the embedded scans into a store at `path`, write its splits, and return the summary."""
    key_file = path.with_name(f"{path.name}.key")
    key_file.parent.mkdir(parents=True, exist_ok=True)
    if not key_file.exists():
        write_text(key_file, KEY.secret.hex() + "\n")
    config = IngestConfig(patients=str(SAMPLES / "patients.csv"), key_file=str(key_file), plain_names=True)
    summary = ingest([SAMPLES / "ct", SAMPLES / "sts"], path, config=config, progress=progress, executor=executor)
    write_splits(path)
    return summary


def write_splits(path: Path) -> None:
    """Write `splits.csv`: `test` for the patients in held_out.csv, `train` for all others."""
    held_out = set(held_out_patients())
    with Store.open(path) as store:
        patients = sorted({entry.patient for entry in store.entries})
    rows = [f"{patient},{'test' if patient in held_out else 'train'}" for patient in patients]
    write_text(path / "splits.csv", "\n".join(["patient,split", *rows]) + "\n")


def patients(path: Path) -> set[str]:
    """Return the pseudonyms of everyone in a store."""
    with Store.open(path) as store:
        return {entry.patient for entry in store.entries}


def held_out_patients() -> list[str]:
    """Return the pseudonyms of the twelve patients that neither pretraining nor the probe's fit may see."""
    with open(SAMPLES / "held_out.csv", encoding="utf-8", newline="") as file:
        return [KEY.pseudonym("patient", row["patient"]) for row in csv.DictReader(file)]
