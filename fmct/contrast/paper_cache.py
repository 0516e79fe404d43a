"""Prepared scans on disk: made once for a scan's content, a template and settings, and read slice by slice afterwards.

FOLDER/FINGERPRINT/CONTENT.npy holds the slices, CONTENT.json the rest, or why the scan is refused. The fingerprint is
of the template and of every setting that changes a value, so what is found is never an old answer. A made scan is never
written twice: a preparation that was stopped goes on.
"""

import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fmct.artefacts import read_json, write_json
from fmct.contrast.paper_preprocessing import PreparedScan, prepare
from fmct.contrast.paper_registration import Template
from fmct.contrast.paper_settings import Preparation
from fmct.errors import ArtefactError, DataError, Refusal
from fmct.store.manifest import Entry
from fmct.store.pool import own_pool
from fmct.store.progress import Reporter, Silent
from fmct.store.reader import Store

FORMAT = ("fmct-prepared-scan", "1.0")
TEMPLATE = "template.npz"
_DIGITS = 24


class PreparedScans:
    """The prepared scans of one template and one set of settings below `folder`."""

    def __init__(self, folder: str | Path, template: Template, settings: Preparation) -> None:
        self.template, self.settings = template, settings
        self.fingerprint = settings.fingerprint(template.content_hash)
        self.folder = Path(folder) / f"slices-{self.fingerprint[:_DIGITS]}"

    def make(
        self, store: Store, entries: Sequence[Entry], *, workers: int = 1, progress: Reporter | None = None
    ) -> None:
        """Prepare what is not there yet, in `workers` processes (0: one a core)."""
        missing = [entry for entry in entries if not self._record(entry).is_file()]
        if not missing:
            return
        self._open()
        progress = progress or Silent()
        progress.start(len(missing))
        settings = json.dumps(self.settings.to_dict())
        try:
            with own_pool(workers, len(missing)) as pool:
                jobs = [pool.submit(_make, str(self.folder), settings, str(store.path), e.id) for e in missing]
                for job in jobs:
                    job.result()
                    progress.advance("")
        finally:
            progress.close()

    def get(self, entry: Entry) -> PreparedScan:
        """Return a scan that was made, its slices mapped from disk. Raises Refusal for one that was refused."""
        path = self._record(entry)
        tree = read_json(path, *FORMAT)
        if tree["code"]:
            raise Refusal(tree["code"], tree["reason"], tree["numbers"])
        try:
            slices = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ArtefactError(
                f"{path.with_suffix('.npy')}: not the slices that were prepared ({error}). Delete it and {path.name} "
                "and run again."
            ) from None
        return PreparedScan(slices, np.array(tree["inside"], dtype=bool), np.array(tree["z_mm"]), tree["facts"])

    def all(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, PreparedScan | Refusal]]:
        """Yield every entry with its prepared scan, or with why it is refused."""
        for entry in entries:
            try:
                yield entry, self.get(entry)
            except Refusal as refused:
                yield entry, refused

    def _record(self, entry: Entry) -> Path:
        return self.folder / f"{entry.content_hash[:_DIGITS]}.json"

    def _open(self) -> None:
        """Make the folder and put the template into it, for the workers."""
        path = self.folder / TEMPLATE
        if path.is_file():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
            with open(temporary, "wb") as file:
                np.savez_compressed(file, voxels=self.template.voxels, affine=self.template.affine)
            os.replace(temporary, path)
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot be written ({error.strerror}). Give another cache=FOLDER."
            ) from None


def _make(folder: str, settings: str, store: str, entry: str) -> None:
    """Prepare one scan of a store and write what came of it; slices first, so that a record means a whole scan."""
    tree: dict[str, Any] = {"code": "", "reason": "", "numbers": {}}
    with Store.open(store) as opened:
        found = opened.entry(entry)
        try:
            prepared = prepare(opened.volume(found), _template(folder), _settings(settings))
        except Refusal as refused:
            tree |= {"code": refused.code, "reason": refused.reason, "numbers": refused.numbers}
            prepared = None
    path = Path(folder) / f"{found.content_hash[:_DIGITS]}.json"
    if prepared is not None:
        temporary = path.with_name(f".{path.stem}.npy.tmp-{os.getpid()}")
        with open(temporary, "wb") as file:
            np.save(file, prepared.slices, allow_pickle=False)
        os.replace(temporary, path.with_suffix(".npy"))
        tree |= {"inside": prepared.inside.tolist(), "z_mm": prepared.z_mm.tolist(), "facts": prepared.facts}
    write_json(path, *FORMAT, tree)


@lru_cache(maxsize=1)
def _template(folder: str) -> Template:
    try:
        with np.load(Path(folder) / TEMPLATE, allow_pickle=False) as arrays:
            return Template("", "", arrays["voxels"], arrays["affine"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ArtefactError(f"{folder}/{TEMPLATE}: not the template that was put there ({error}).") from None


@lru_cache(maxsize=1)
def _settings(text: str) -> Preparation:
    return Preparation.from_dict(json.loads(text))
