"""What an ingest found: scans to read and files that are none, each with a stable key and its names to keep private."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from fmct.io import ReadPolicy, discover
from fmct.io.candidate import Candidate
from fmct.io.refusals import Rejected

_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")


@dataclass(frozen=True)
class Found:
    """A scan (`candidate`) or a file that is none (`rejected`).

    key: absolute place and series, unique on this machine. name: path relative to its source; path: absolute. All three
    and `patient` may name a person: they go nowhere but into keyed hashes and the sources table.
    """

    key: str
    name: str
    path: str
    patient: str | None
    bytes: int
    candidate: Candidate | None = None
    rejected: Rejected | None = None

    @property
    def suffix(self) -> str:
        """The file's suffix, when it is one of a known format; DICOM series have none."""
        return next((s for s in _SUFFIXES if self.path.lower().endswith(s)), "")

    def without_names(self, text: str) -> str:
        """Return `text` with this scan's paths, file names and patient replaced."""
        private = {self.path, self.name, self.patient or "", *PurePath(self.name).parts}
        for path in self.candidate.paths if self.candidate else ():
            private |= {path, PurePath(path).name}
        for word in sorted((w for w in private if len(w) > 3), key=len, reverse=True):
            text = text.replace(word, "…")
        return text


def find(sources: Sequence[str | Path], policy: ReadPolicy, *, exclude: Path) -> Iterator[Found]:
    """Yield everything under the sources once, in a fixed order; what lies in the store itself is left out."""
    seen: set[str] = set()
    own = exclude.resolve()
    for item in discover([Path(source) for source in sources], policy=policy):
        found = _found(item)
        if found.key not in seen and not Path(found.path).is_relative_to(own):
            seen.add(found.key)
            yield found


def _found(item: Candidate | Rejected) -> Found:
    if isinstance(item, Rejected):
        path = str(Path(item.path).resolve())
        return Found(f"{path}\0{item.code}", Path(item.path).name, path, None, _size(path), rejected=item)
    path = str(Path(item.paths[0]).resolve())
    place = str(Path(path).parent) if item.format == "dicom" else path
    return Found(f"{place}\0{item.series}\0{item.key}", item.name, place, item.patient, item.bytes, candidate=item)


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
