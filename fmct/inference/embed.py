"""Features of many series with a published encoder: from a store, a folder of scans or one scan, into one NPZ file."""

import csv
import io
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fmct.artefacts import fsync_directory, stamped, write_text
from fmct.data.series import scan_of_entry
from fmct.errors import ArtefactError, DataError, FmctError, Refusal
from fmct.io import Candidate, ReadPolicy, Rejected, discover, read_candidate
from fmct.publish import layout
from fmct.publish.load import Embedding, PublishedEncoder
from fmct.store import Entry, Store, is_store
from fmct.store.fingerprint import PseudonymKey
from fmct.store.progress import Reporter, Silent

FORMAT = ("fmct-embedding", "1.0")


@dataclass
class Features:
    """Features of S series. ids, patients: pseudonyms. embeddings: one Embedding each, vector (2E,).

    refused: (id, code, reason) of what was not embedded. sources: {id: path} of scans, which may name people: it goes
    into no artefact unless asked for.
    """

    ids: list[str] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    embeddings: list[Embedding] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def matrix(self) -> np.ndarray:
        """The vectors as (S, 2E) float32."""
        return np.stack([embedding.vector for embedding in self.embeddings])


def embed(
    encoder: PublishedEncoder,
    source: str | Path,
    *,
    key: PseudonymKey | None = None,
    progress: Reporter | None = None,
) -> Features:
    """Return the features of every series of a store, a folder of scans or one scan, in a fixed order.

    Series of another modality and scans that cannot be read are refused, with their reasons. key: turns patient names
    into pseudonyms, a store's own for the same ones; without it a random one, so that they only group series within
    this result. Raises DataError when nothing can be embedded.
    """
    progress = progress or Silent()
    features = Features()
    try:
        if is_store(source):
            _embed_store(encoder, Store.open(source), features, progress)
        else:
            _embed_scans(encoder, source, key or PseudonymKey(secrets.token_bytes(32)), features, progress)
    finally:
        progress.close()
    if not features.ids:
        reasons = (
            "; ".join(sorted({f"{code}: {reason}" for _, code, reason in features.refused})[:4]) or "no scans there"
        )
        raise DataError(f"{source}: nothing to embed for an encoder of {encoder.preprocessing.modality} ({reasons}).")
    return features


def embed_entries(encoder: PublishedEncoder, store: Store, entries: Iterable[Entry]) -> Iterator[Embedding]:
    """Yield the Embedding of each entry of a store, reading only the pyramid levels that it needs."""
    for entry in entries:
        yield encoder.embed_tiles(
            encoder.preprocessing.batches(
                scan_of_entry(encoder.preprocessing, store, entry),
                batch_size=encoder.batch_size(),
                device=encoder.device,
            )
        )


def write_features(path: str | Path, features: Features, encoder: PublishedEncoder, *, tiles: bool = False) -> None:
    """Write features as NPZ, atomically and without pickle: ids, patients, embedding (S, 2E) float32, meta (JSON).

    With tiles also, for all T tiles of all series: tile_features (T, 2E), tile_series (T,) index into ids,
    tile_start_mm (T, 3) RAS mm, tile_foreground (T,). Raises ArtefactError when it cannot be written.
    """
    path = Path(path)
    meta = {
        "encoder": layout.fingerprint(encoder.folder) if encoder.folder else None,
        "repository": encoder.origin if "@" in encoder.origin else None,
        "features": "[cls, mean patch]",
        "preprocessing": encoder.preprocessing.to_dict(),
    }
    arrays = {
        "meta": np.array(json.dumps(stamped(*FORMAT, meta))),
        "ids": np.array(features.ids),
        "patients": np.array(features.patients),
        "embedding": features.matrix,
    }
    if tiles:
        parts = features.embeddings
        arrays["tile_features"] = np.concatenate([part.tiles for part in parts])
        arrays["tile_series"] = np.repeat(np.arange(len(parts)), [len(part.tiles) for part in parts])
        arrays["tile_start_mm"] = np.concatenate([part.start_mm for part in parts])
        arrays["tile_foreground"] = np.concatenate([part.foreground for part in parts])
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_directory(path.absolute().parent)
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be written ({error.strerror}). Choose a place you may write to.") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_sources(path: str | Path, features: Features) -> None:
    """Write a CSV of id and path of every scan embedded. It holds paths, which may name people: keep it on site."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "path"])
    rows.writerows([name, features.sources.get(name, "")] for name in features.ids)
    write_text(Path(path), text.getvalue())


def _embed_store(encoder: PublishedEncoder, store: Store, features: Features, progress: Reporter) -> None:
    progress.start(len(store.entries))
    for entry in store.entries:
        try:
            embedding = next(embed_entries(encoder, store, [entry]))
        except DataError as error:
            features.refused.append((entry.id, "wrong-modality", str(error)))
        else:
            _add(features, entry.id, entry.patient, embedding)
        progress.advance(f"{len(features.refused)} not taken")
    store.close()


def _embed_scans(
    encoder: PublishedEncoder, source: str | Path, key: PseudonymKey, features: Features, progress: Reporter
) -> None:
    modality = encoder.preprocessing.modality
    policy = ReadPolicy(modalities=(modality,))
    found = list(discover([source], policy=policy))
    progress.start(len(found))
    for item in found:
        if isinstance(item, Rejected):
            features.refused.append(("", item.code, item.reason))
        else:
            _embed_candidate(encoder, item, policy, key, features)
        progress.advance(f"{len(features.refused)} not taken")


def _embed_candidate(
    encoder: PublishedEncoder, candidate: Candidate, policy: ReadPolicy, key: PseudonymKey, features: Features
) -> None:
    believed = None if encoder.preprocessing.modality == "CT" else encoder.preprocessing.modality
    name = candidate.key
    try:
        embedding = encoder.embed(read_candidate(candidate, policy, modality=believed), return_tiles=True)
    except Refusal as refused:
        features.refused.append((name, refused.code, refused.reason))
        return
    except FmctError as error:
        features.refused.append((name, "unreadable", str(error)))
        return
    patient = (
        key.pseudonym("patient", candidate.patient) if candidate.patient else key.pseudonym("patient", f"\0{name}")
    )
    features.sources[name] = candidate.paths[0]
    _add(features, name, patient, embedding)


def _add(features: Features, name: str, patient: str, embedding: Embedding) -> None:
    features.ids.append(name)
    features.patients.append(patient)
    features.embeddings.append(embedding)
