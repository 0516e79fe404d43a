"""One series: read, hash, pyramid, sealed part. Runs in a worker process."""

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fmct.errors import DataError, FmctError, Refusal
from fmct.io import ReadPolicy, read_candidate
from fmct.io.candidate import Candidate
from fmct.pyramid import build as build_pyramid
from fmct.pyramid import level_factors, level_spacing
from fmct.shapes import Triple
from fmct.store import hdf5
from fmct.store.fingerprint import content_hash, voxel_hash
from fmct.store.manifest import Entry, Level, entry_from_json
from fmct.store.reader import part_name
from fmct.volume import CANONICAL, Volume

INT16_MAX = 32767
READER_FAILED = "reader-failed"  # a fault of ours, not of the scan: tried again by the next ingest


@dataclass(frozen=True)
class Job:
    """What a worker needs for one series. `read` is a picklable function that returns the Volume or raises Refusal."""

    name: str
    patient: str
    store: str
    read: Callable[[], Volume]
    recipe: str
    chunk: Triple
    codec: str


@dataclass(frozen=True)
class Taken:
    """A series in a sealed part; seconds by stage (empty when the part was there from an earlier run)."""

    entry: Entry
    seconds: dict[str, float]


@dataclass(frozen=True)
class Refused:
    """A series not taken."""

    code: str
    reason: str
    numbers: dict[str, Any]


def take(job: Job) -> Taken | Refused:
    """Read one series and seal it in a part of its own. Never raises for a fault of the scan."""
    store = Path(job.store)
    part = store / part_name(job.name)
    if part.is_file():
        text, size = hdf5.read_record(part, job.name)
        known = json.loads(text)
        if known["recipe"] == job.recipe:
            entry = entry_from_json(json.dumps(known["entry"]), part.name)
            return Taken(replace(entry, patient=job.patient, bytes=size), {})
    clock = [time.perf_counter()]
    try:
        volume = job.read()
    except Refusal as refusal:
        return Refused(refusal.code, refusal.reason, refusal.numbers)
    except FmctError as error:
        return Refused("unreadable", str(error), {})
    except MemoryError:
        return Refused("too-large", "the machine has not enough memory for this series", {})
    clock.append(time.perf_counter())
    stored, scale, max_error = to_int16(volume)
    entry = _describe(job, volume, stored, scale, max_error)
    del volume
    clock.append(time.perf_counter())
    levels = [voxels for _, voxels in build_pyramid(stored, entry.spacing_mm)]
    clock.append(time.perf_counter())
    record = json.dumps({"recipe": job.recipe, "entry": asdict(entry)}, allow_nan=False)
    size = hdf5.write_part(part, job.name, levels, record, chunk=job.chunk, codec=job.codec)
    clock.append(time.perf_counter())
    stages = ("read", "hash", "pyramid", "write")
    seconds = {stage: b - a for stage, a, b in zip(stages, clock[:-1], clock[1:], strict=True)}
    return Taken(replace(entry, bytes=size), seconds)


def read_found(candidate: Candidate, policy: ReadPolicy) -> Volume:
    """Return a candidate's volume. Raises Refusal for whatever is wrong with it, a reader's own fault included."""
    try:
        return read_candidate(candidate, policy)
    except (FmctError, MemoryError):
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        raise Refusal(READER_FAILED, f"the reader raised {type(error).__name__}", {"where": where}) from error


def to_int16(volume: Volume) -> tuple[np.ndarray, float, float]:
    """Return (int16 voxels, scale, largest error): voxels · scale is the value. CT is int16 already: scale 1, error 0.

    Other modalities take the smallest scale that holds their largest magnitude, so the error is at most half of it.
    Raises Refusal for values that no scale can hold.
    """
    voxels = volume.voxels
    if voxels.dtype == np.int16:
        return voxels, 1.0, 0.0
    largest = max(abs(float(voxels.min())), abs(float(voxels.max())))
    if not np.isfinite(largest):
        raise Refusal("non-finite-values", "NaN or infinite voxels", {})
    scale = float(np.float32(largest / INT16_MAX)) or 1.0
    stored = np.empty(voxels.shape, dtype=np.int16)
    error = 0.0
    for plane, target in zip(voxels, stored, strict=True):
        target[:] = np.clip(np.rint(plane / np.float64(scale)), -INT16_MAX, INT16_MAX)
        error = max(error, float(np.abs(target * np.float64(scale) - plane).max()))
    return stored, scale, error


def _describe(job: Job, volume: Volume, stored: np.ndarray, scale: float, max_error: float) -> Entry:
    if volume.orientation != CANONICAL:
        raise DataError(f"a reader must return volumes in {CANONICAL} order, this one is {volume.orientation}.")
    facts = dict(volume.facts)
    original = np.asarray(facts.pop("original_affine", volume.affine), dtype=np.float64)
    spacing = tuple(round(float(s), 6) for s in volume.spacing)
    hashed = voxel_hash(stored)
    levels = []
    for factor in level_factors(stored.shape, spacing):
        shape = tuple(-(-n // f) for n, f in zip(stored.shape, factor, strict=True))
        levels.append(Level(factor, shape, level_spacing(spacing, factor)))  # type: ignore[arg-type]
    return Entry(
        id=job.name,
        patient=job.patient,
        modality=volume.modality,
        units=volume.units,
        shape=volume.shape,
        spacing_mm=spacing,  # type: ignore[arg-type]
        affine=_matrix(volume.affine),
        original_affine=_matrix(original),
        value_range=(float(volume.voxels.min()), float(volume.voxels.max())),
        content_hash=content_hash(hashed, volume.affine),
        voxel_hash=hashed,
        levels=tuple(levels),
        scale=scale,
        max_error=max_error,
        facts=json.loads(json.dumps(facts, default=_plain, allow_nan=False)),
    )


def _matrix(affine: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(v) for v in row) for row in affine)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
