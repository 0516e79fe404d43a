"""Finds the scans under files and folders: any nesting, any names, formats by content, in a fixed order."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fmct.errors import DataError, Refusal
from fmct.io.candidate import Candidate, digest
from fmct.io.dicom_header import file_size, read_headers
from fmct.io.dicom_series import SeriesIndex
from fmct.io.policy import ReadPolicy
from fmct.io.refusals import Rejected

_ARCHIVES = {b"PK\x03\x04": "zip", b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_DATA_OF = {".raw": (".mhd", ".nhdr"), ".zraw": (".mhd",), ".img": (".hdr",), ".gz": (".mhd", ".nhdr")}
_VR = re.compile(rb"^(AE|AS|AT|CS|DA|DS|DT|FL|FD|IS|LO|LT|OB|OD|OF|OL|OW|PN|SH|SL|SQ|SS|ST|TM|UI|UL|UN|US|UT)$")


def discover(sources: Sequence[str | Path], *, policy: ReadPolicy | None = None) -> Iterator[Candidate | Rejected]:
    """Yield a Candidate for each scan under the sources and a Rejected for each file that is none.

    Files are walked in sorted order (links are followed, loops are not). NIfTI, NRRD and MHA come out at once; DICOM
    series when every source is walked, or folder by folder with policy.series_scope="folder". Only headers are read.
    Raises DataError when a source does not exist.
    """
    policy = policy or ReadPolicy()
    index = SeriesIndex(policy)
    keys: set[str] = set()
    missing = [str(source) for source in sources if not os.path.exists(source)]
    if missing:
        raise DataError(f"{missing[0]}: no such file or folder. Expected a scan, or a folder that holds scans.")
    for source in sources:
        root = Path(source)
        for folder, names in walk(root):
            for name in names:
                path = os.path.join(folder, name)
                relative = os.path.relpath(path, root if root.is_dir() else root.parent)
                for found in _look(path, Path(relative).as_posix(), index, set(names)):
                    yield _with_own_key(found, root.name, keys)
            if policy.series_scope == "folder":
                yield from (_with_own_key(found, "", keys) for found in index.take())
    yield from (_with_own_key(found, "", keys) for found in index.take())


def walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, sorted file names) under a folder, or of the one file; each folder once, however it is linked."""
    if not root.is_dir():
        yield str(root.parent), [root.name]
        return
    seen: set[tuple[int, int]] = set()
    pending = [str(root)]
    while pending:
        folder = pending.pop()
        try:
            status = os.stat(folder)
            with os.scandir(folder) as entries:
                listed = sorted((entry.name, entry.is_dir(), entry.is_file()) for entry in entries)
        except OSError:
            continue  # vanished or not permitted: nothing in it can be read
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        yield folder, [name for name, _, is_file in listed if is_file]
        pending.extend(os.path.join(folder, name) for name, is_folder, _ in reversed(listed) if is_folder)


def file_format(path: str) -> str:
    """Return dicom, nifti, nrrd, mha, archive, empty, unreadable or other, by the first bytes and the name."""
    lower = path.lower()
    try:
        with open(path, "rb") as file:
            head = file.read(352)
    except OSError:
        return "unreadable"
    if not head:
        return "empty"
    if lower.endswith((".nii", ".nii.gz")):
        return "nifti"
    if head[128:132] == b"DICM" or _is_bare_dicom(head):
        return "dicom"
    if head[:4] == b"NRRD":
        return "nrrd"
    if lower.endswith((".mha", ".mhd")):
        return "mha"
    if head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0"):
        return "nifti"
    if head[257:262] == b"ustar" or any(head.startswith(magic) for magic in _ARCHIVES) or head[:2] == b"\x1f\x8b":
        return "archive"
    return "other"


def _look(path: str, name: str, index: SeriesIndex, siblings: set[str]) -> Iterator[Candidate | Rejected]:
    """Yield what one file is; DICOM slices go into the index."""
    if _belongs_to_header(os.path.basename(path), siblings):
        return
    kind = file_format(path)
    if kind == "dicom":
        try:
            index.add(path, name, read_headers(path))
        except Refusal as refused:
            yield Rejected(path, refused.code, refused.reason, refused.numbers)
    elif kind in ("nifti", "nrrd", "mha"):
        yield Candidate("", (path,), kind, name, bytes=file_size(path))
    elif kind == "archive":
        yield Rejected(path, "archive", "an archive; unpack it first")
    elif kind == "unreadable":
        yield Rejected(path, "unreadable", "the file cannot be opened")
    else:
        reason = "the file is empty" if kind == "empty" else "neither DICOM, NIfTI, NRRD nor MHA"
        yield Rejected(path, "not-an-image", reason)


def _belongs_to_header(name: str, siblings: set[str]) -> bool:
    """Return whether a file is the data part of a header file beside it (scan.raw of scan.mhd)."""
    stem, extension = os.path.splitext(name)
    if extension == ".gz":
        stem = os.path.splitext(stem)[0]
    return any(stem + header in siblings for header in _DATA_OF.get(extension, ()))


def _is_bare_dicom(head: bytes) -> bool:
    """Return whether bytes begin like a DICOM data set without preamble: group 2 or 8, and a sane first element."""
    if head[:2] not in (b"\x02\x00", b"\x08\x00") or len(head) < 8:
        return False
    if _VR.match(head[4:6]):
        return True
    return head[:2] == b"\x08\x00" and head[3:4] in (b"\x00", b"\x01") and int.from_bytes(head[4:8], "little") < 4096


def _with_own_key(found: Candidate | Rejected, source: str, keys: set[str]) -> Candidate | Rejected:
    """Return a candidate under a key that no other has: files of equal name in two sources get one each."""
    if isinstance(found, Rejected):
        return found
    key = f"file-{digest(source, found.name)}" if found.format != "dicom" else found.key
    if key in keys:
        key = f"{key.split('-')[0]}-{digest(key, os.path.abspath(found.paths[0]))}"
    keys.add(key)
    return replace(found, key=key)
