"""What the headers of a DICOM series say of contrast: every attribute that may, of every slice. Pixels are not read.

Values are texts as they stand, also of codes (their meaning) and of what lies in sequences and functional groups. Free
text may name a person: what is returned here stays in memory, to be judged by fmct.contrast.header.
"""

from collections.abc import Mapping, Sequence

from pydicom.dataset import Dataset

from fmct.errors import Refusal
from fmct.io.dicom_header import quiet, read_dataset

AGENT_TEXT = ("ContrastBolusAgent", "ContrastBolusIngredient")
CODES = (
    "ContrastBolusAgentSequence",
    "ContrastBolusAdministrationRouteSequence",
    "ContrastBolusIngredientCodeSequence",
)
ROUTE = "ContrastBolusRoute"
AMOUNTS = (
    "ContrastBolusVolume",
    "ContrastBolusTotalDose",
    "ContrastBolusIngredientConcentration",
    "ContrastBolusInjectionDelay",
)
TIMES = ("ContrastBolusStartTime", "ContrastBolusStopTime")
FLOWS = ("ContrastFlowRate", "ContrastFlowDuration")
ENHANCED = ("ContrastBolusAgentAdministered", "ContrastBolusAgentDetected", "ContrastBolusAgentPhase")
FREE_TEXT = ("SeriesDescription", "ProtocolName", "StudyDescription")
_PROFILES = ("ContrastAdministrationProfileSequence", "ContrastBolusUsageSequence")
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_VALUES = (*AGENT_TEXT, ROUTE, *AMOUNTS, *TIMES, *FLOWS, *ENHANCED, *FREE_TEXT)
ATTRIBUTES = (*_VALUES, *CODES, *_PROFILES)
"""Keywords of everything that is read."""
UNREADABLE = "\ufffd"
_DEEPEST = 6
SliceContrast = Mapping[str, tuple[str, ...]]


def read_contrast_headers(paths: Sequence[str]) -> list[SliceContrast]:
    """Return, for every file, {keyword: its values as text}; a keyword is absent where the header has none.

    A value that cannot be read is UNREADABLE; a file that is no DICOM has this as its only value, under the key "".
    An attribute that is there and empty has the one value "".
    """
    with quiet():
        return [_of_file(path) for path in paths]


def _of_file(path: str) -> SliceContrast:
    try:
        dataset = read_dataset(path, [*ATTRIBUTES, *_GROUPS])
    except Refusal:
        return {"": (UNREADABLE,)}
    found: dict[str, list[str]] = {}
    _collect(dataset, found, 0)
    return {keyword: tuple(values) for keyword, values in found.items()}


def _collect(dataset: Dataset, found: dict[str, list[str]], depth: int) -> None:
    """Add what a data set and its sequences say to `found`."""
    for keyword in _VALUES:
        if keyword in dataset:
            found.setdefault(keyword, []).extend(_texts(dataset, keyword))
    for keyword in CODES:
        if keyword in dataset:
            meanings = [_meaning(item) for item in _items(dataset, keyword)] or [""]
            found.setdefault(keyword, []).extend(meanings)
    if depth < _DEEPEST:
        for keyword in (*CODES[:1], *_PROFILES, *_GROUPS):
            for item in _items(dataset, keyword):
                _collect(item, found, depth + 1)


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence, [] when absent or damaged."""
    try:
        return [item for item in dataset.get(keyword) or [] if isinstance(item, Dataset)]
    except Exception:  # a crafted sequence fails when it is first looked at
        return []


def _meaning(item: Dataset) -> str:
    """Return the meaning of a code, or its value where it states none."""
    return next((text for keyword in ("CodeMeaning", "CodeValue") for text in _texts(item, keyword) if text), "")


def _texts(dataset: Dataset, keyword: str) -> list[str]:
    """Return an element's values as stripped texts; UNREADABLE for what cannot be one."""
    try:
        value = dataset.get(keyword)
        several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        texts = [_text(item) for item in (value if several else [value])]
    except Exception:  # an element is parsed when it is first looked at: a damaged one may raise anything
        return [UNREADABLE]
    return texts or [""]


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value.decode("ascii", errors="replace")
    return str(value).strip(" \0\t\r\n")
