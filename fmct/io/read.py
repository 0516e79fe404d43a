"""Reads one scan: a candidate that discovery found, or a path."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from fmct.errors import DataError, GeometryError, Refusal
from fmct.io.candidate import Candidate
from fmct.io.dicom import read_dicom
from fmct.io.discover import discover
from fmct.io.nifti import read_nifti
from fmct.io.policy import ReadPolicy
from fmct.io.refusals import Rejected, refusal
from fmct.io.sitk import read_sitk
from fmct.volume import Volume


def read_candidate(candidate: Candidate, policy: ReadPolicy | None = None, *, modality: str | None = None) -> Volume:
    """Return the canonical (SPL) Volume of a candidate: int16 HU with padding as air for CT, else float32.

    modality: what a file without a modality header is, in place of the policy's table and patterns. Raises Refusal
    and nothing else on bad input; its text names no path, patient or UID.
    """
    policy = policy or ReadPolicy()
    named = modality or policy.named_modality(candidate.name)
    try:
        if candidate.format == "dicom":
            return read_dicom(candidate, policy)
        reader = read_nifti if candidate.format == "nifti" else read_sitk
        return reader(candidate, policy, named)
    except GeometryError:
        raise refusal("bad-geometry", "the voxel axes do not span a volume") from None
    except OSError as error:
        raise refusal("unreadable", f"the file cannot be read ({type(error).__name__})") from None
    except MemoryError:
        raise refusal("too-large", "the voxels do not fit into memory") from None


def read_volume(
    path: str | Path, *, modality: str = "CT", policy: ReadPolicy | None = None, series: str | None = None
) -> Volume:
    """Return the canonical (SPL) Volume of a file, or of a folder that holds exactly one readable scan.

    modality: what to take; for files without a modality header, PT or MR is believed, and CT is checked by its values.
    series: the key (or its beginning) of one scan where there are several. Raises Refusal when the scan is not taken,
    and DataError when there is none or more than one.
    """
    policy = replace(policy or ReadPolicy(), modalities=(modality,))
    found = list(discover([path], policy=policy))
    candidates = [item for item in found if isinstance(item, Candidate)]
    rejected = [item for item in found if isinstance(item, Rejected)]
    if series is not None:
        candidates = [c for c in candidates if c.key.startswith(series) or c.series.startswith(series)]
    if len(candidates) == 1:
        return read_candidate(candidates[0], policy, modality=None if modality == "CT" else modality)
    if candidates:
        listed = "; ".join(f"{c.key} ({c.format}, {len(c.paths)} files)" for c in candidates[:8])
        raise DataError(f"{path}: expected one scan, found {len(candidates)}: {listed}. Choose one with series=KEY.")
    if len(rejected) == 1 and series is None:
        raise Refusal(rejected[0].code, rejected[0].reason, rejected[0].numbers)
    told = ", ".join(f"{code} × {n}" for code, n in Counter(r.code for r in rejected).most_common()) or "no files"
    raise DataError(f"{path}: expected a scan, found none to read ({told}).")
