"""What a series' headers say of intravenous contrast: yes, no, absent or ambiguous, and which attributes decided.

Ye et al. (2022) read one attribute, and took every text but N, n and NO for contrast. Here "none", "w/o" and "0" are
no, an agent that is drunk is not one in a vessel, a statement beats a free text, and contradictions are ambiguous. A
header is a claim, not a finding: fmct.contrast.audit sets it beside what the pixels say.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fmct.io.dicom_contrast import AGENT_TEXT, AMOUNTS, CODES, FLOWS, FREE_TEXT, ROUTE, TIMES, UNREADABLE, SliceContrast

STATES = ("yes", "no", "absent", "ambiguous")
_NOTHING_SAID = {"", "n/a", "na", "unknown", "unk", "?", "-", "--", ".", "not applicable", "unspecified", "other"}
_NO = {
    "n",
    "no",
    "none",
    "nil",
    "0",
    "0.0",
    "false",
    "negative",
    "kein",
    "keine",
    "keines",
    "aucun",
    "ninguno",
    "nessuno",
}
_YES = {"y", "yes", "1", "true", "positive", "ja", "oui", "si", "c+", "+c", "ce", "km", "w", "with", "applied", "used"}
_AGENT = re.compile(
    r"omnipa|iohexol|isovue|iopam|niopam|solutrast|ultravist|iopromid|visipa|iodixanol|optira|ioversol|oxilan|ioxilan"
    r"|xenetix|iobitridol|imeron|iomer|iomeprol|accupa|hexabrix|ioxagl|conray|iothal|iodin|jod|non-?ionic|gado"
    r"|magnevist|dotarem|prohance|multihance|bolus|contrast|kontrast|contraste|\bkm\b|\bc\.?m\b"
)
_VEIN = re.compile(
    r"\bi\.?\s?v\b\.?|intra-?ven|intravasc|intra-?art|\bvein|\bvenous route|\bvenös|injection|\bg-d101\b|47625008"
)
_GUT = re.compile(
    r"\boral|\bp\.?\s?o\b\.?|rectal|\brect\b|\bper os\b|enema|gastro|barium|\bbarit|e-?z-?cat|readi-?cat|volumen"
    r"|telebrix|peroral|by mouth|26643006|37161004|\bg-d140\b|\bg-d160\b|intrathecal|intra-?artic|intravesic"
)
_WITHOUT = re.compile(
    r"(?<!\w)(no|non|not|without|w/o|wo|w-o|ohne|kein\w*|sans|sin|senza|pre|un)[\s_.-]*"
    r"(?P<what>(oral|rectal|po|iv|i\.v\.|intravenous|any|the|\s|[-_.])*(contrast\w*|kontrast\w*|contraste|enhanc\w*|km|cm|c|ic|agent)?)(?!\w)"
)
_BOTH = re.compile(
    r"w\s*(/|&|\+|and)?\s*w\s*/?\s*o\b|with\s*(and|&|\+|/)\s*without|mit\s*(und|/)\s*ohne|pre\s*(and|&|\+|/)\s*post|(?<!\w)c-\s*/?\s*c\+|\+/-"
)
_NATIVE = re.compile(
    r"(?<!\w)(native?|nativ|unenhanced|non-?contrast|noncon|ncct|nect|c-|precontrast|plain|w/o|wo|nc)(?!\w)"
)
_ENHANCED = re.compile(
    r"(?<!\w)(with|w|w/|mit|avec|con|post|iv|i\.v\.)[\s_.+-]*(iv\s*|i\.v\.\s*)?(contrast\w*|kontrast\w*|contraste|km|c\b|gad\w*)"
    r"|(?<!\w)(cta|ctpa|ctv|cect|ce|c\+|\+c|angio\w*|arteri\w*|portal\w*|venous|venös|ven|delayed|late|enhanced|postcontrast"
    r"|nephro\w*|urogra\w*|excret\w*|corticomed\w*|pulmonary embol\w*)(?!\w)"
)


@dataclass(frozen=True)
class HeaderState:
    """state: of STATES. tags: the attributes that decided, by keyword. reason: in words, without any free text."""

    state: str
    tags: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class _Says:
    """What one attribute says: yes, no, gut (an agent elsewhere than in a vessel), unclear, or nothing."""

    tag: str
    what: str


def judge_series(slices: Sequence[SliceContrast]) -> HeaderState:
    """Return the state of a series from what read_contrast_headers found; slices that differ make it ambiguous."""
    distinct: dict[tuple[tuple[str, tuple[str, ...]], ...], int] = Counter(
        tuple(sorted(header.items())) for header in slices
    )
    judged = [(judge(dict(header)), count) for header, count in distinct.items()]
    states = Counter[str]()
    for verdict, count in judged:
        states[verdict.state] += count
    if not judged:
        return HeaderState("absent", (), "no DICOM header")
    if len(states) == 1:
        return judged[0][0]
    tags = tuple(dict.fromkeys(tag for verdict, _ in judged for tag in verdict.tags))
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    return HeaderState("ambiguous", tags, f"the slices disagree: {counts}")


def judge(header: Mapping[str, tuple[str, ...]]) -> HeaderState:
    """Return the state of one slice's attributes."""
    stated = _enhanced_object(header)
    if stated is not None:
        return stated
    said = [*_agents(header), *_routes(header), *_amounts(header)]
    by = {what: tuple(dict.fromkeys(s.tag for s in said if s.what == what)) for what in ("yes", "no", "gut", "unclear")}
    series, around = _free_text(header)
    if by["yes"] and by["no"]:
        return HeaderState("ambiguous", by["yes"] + by["no"], "attributes contradict each other")
    if by["gut"] and not any(s.what == "yes" and s.tag in (ROUTE, CODES[1]) for s in said):
        return HeaderState("ambiguous", by["gut"], "an agent that was not given into a vessel, as far as is said")
    for state, opposite in (("yes", "no"), ("no", "yes")):
        if by[state]:
            if series == opposite:
                told = f"{by[state][0]} says {state}, the series' description says {opposite}"
                return HeaderState("ambiguous", (*by[state], FREE_TEXT[0]), told)
            return HeaderState(state, by[state], f"stated by {by[state][0]}")
    if by["unclear"]:
        return HeaderState("ambiguous", by["unclear"], f"{by['unclear'][0]} holds what names no agent and denies none")
    return _by_description(header, series, around)


def agent_says(text: str) -> str:
    """Return what a text of ContrastBolusAgent says: yes, no, gut, unclear, or nothing."""
    if UNREADABLE in text:
        return "unclear"
    plain = re.sub(r"\s+", " ", text.strip().lower())
    bare = plain.strip(" .,;:!\"'()[]")
    if plain in _NOTHING_SAID or bare in _NOTHING_SAID:
        return "nothing"
    if plain in _NO or bare in _NO:
        return "no"
    if plain in _YES or bare in _YES:
        return "yes"
    if _BOTH.search(plain):
        return "unclear"
    rest, denied = plain, False
    for match in _WITHOUT.finditer(plain):
        gut_only = bool(_GUT.search(match["what"] or "")) and not _VEIN.search(match["what"] or "")
        denied |= not gut_only
        rest = rest.replace(match[0], " ", 1)
    vein, gut = bool(_VEIN.search(rest)), bool(_GUT.search(rest))
    named = vein or (bool(_AGENT.search(rest)) and not gut)
    if denied:
        return "unclear" if named else "no"
    return "yes" if named else "gut" if gut else "unclear"


def _agents(header: Mapping[str, tuple[str, ...]]) -> list[_Says]:
    tags = (*AGENT_TEXT, CODES[0], CODES[2])
    return [_Says(tag, agent_says(text)) for tag in tags for text in header.get(tag, ())]


def _routes(header: Mapping[str, tuple[str, ...]]) -> list[_Says]:
    found = []
    for tag in (ROUTE, CODES[1]):
        for text in header.get(tag, ()):
            plain = text.lower()
            if UNREADABLE in text:
                found.append(_Says(tag, "unclear"))
            elif _VEIN.search(plain):
                found.append(_Says(tag, "yes"))
            elif _GUT.search(plain):
                found.append(_Says(tag, "gut"))
            elif plain not in _NOTHING_SAID | _NO:
                found.append(_Says(tag, "unclear"))
    return found


def _amounts(header: Mapping[str, tuple[str, ...]]) -> list[_Says]:
    """Return what numbers say. A flow is an injector's; a volume or a time may be a protocol's default."""
    found = []
    for tag in (*FLOWS, *AMOUNTS, *TIMES):
        for text in header.get(tag, ()):
            if UNREADABLE in text or (_number(text) or 0.0) > 0:
                found.append(_Says(tag, "yes" if tag in FLOWS and UNREADABLE not in text else "unclear"))
    return found


def _number(text: str) -> float | None:
    try:
        return float(text.replace(":", ""))
    except ValueError:
        return None


def _enhanced_object(header: Mapping[str, tuple[str, ...]]) -> HeaderState | None:
    """Return what AgentAdministered decides, which beats free text; None where it says nothing."""
    given = {text.strip().upper() for text in header.get("ContrastBolusAgentAdministered", ())} & {"YES", "NO"}
    seen = {text.strip().upper() for text in header.get("ContrastBolusAgentDetected", ())} & {"YES", "NO"}
    if not given:
        return None
    tags = ("ContrastBolusAgentAdministered", *(("ContrastBolusAgentDetected",) if seen else ()))
    if len(given) == 2:
        return HeaderState("ambiguous", tags, "AgentAdministered differs within the object")
    if given == {"NO"}:
        return HeaderState("no", tags[:1], "AgentAdministered is NO, which a free text does not outweigh")
    if any(s.what == "gut" for s in _routes(header)) and not any(s.what == "yes" for s in _routes(header)):
        return HeaderState("ambiguous", (*tags, ROUTE), "an agent that was not given into a vessel, as far as is said")
    if seen == {"NO"}:
        return HeaderState("ambiguous", tags, "an agent was administered and not detected")
    return HeaderState("yes", tags, "AgentAdministered is YES")


def description_says(text: str) -> str:
    """Return what a description says: yes, no, unclear (both), or nothing."""
    plain = re.sub(r"[\s_]+", " ", text.lower()).strip()
    if _BOTH.search(plain):
        return "unclear"
    without = _WITHOUT.search(plain)
    native = bool(_NATIVE.search(plain)) or bool(
        without and re.search(r"contrast|kontrast|enhanc|km|\bc\b|iv", without[0])
    )
    rest = plain if without is None else plain.replace(without[0], " ")
    enhanced = bool(_ENHANCED.search(_NATIVE.sub(" ", rest)))
    return "unclear" if native and enhanced else "no" if native else "yes" if enhanced else "nothing"


def _free_text(header: Mapping[str, tuple[str, ...]]) -> tuple[str, str]:
    """Return what the series' description says, and what protocol and study say together."""
    series = {description_says(text) for text in header.get(FREE_TEXT[0], ())} - {"nothing"}
    around = {description_says(text) for tag in FREE_TEXT[1:] for text in header.get(tag, ())} - {"nothing"}
    return tuple("nothing" if not said else said.pop() if len(said) == 1 else "unclear" for said in (series, around))  # type: ignore[return-value]


def _by_description(header: Mapping[str, tuple[str, ...]], series: str, around: str) -> HeaderState:
    """Return the state that free text leads to where no attribute states anything."""
    if series in ("yes", "no"):
        return HeaderState(series, FREE_TEXT[:1], f"no attribute states it; the series' description says {series}")
    tags = tuple(tag for tag in FREE_TEXT if any(description_says(t) != "nothing" for t in header.get(tag, ())))
    if series == "unclear" or around in ("unclear", "yes"):
        # A study with contrast holds series without: its name decides nothing about one of them.
        return HeaderState("ambiguous", tags, "only a description speaks of contrast, and not of this series alone")
    if around == "no":
        return HeaderState("no", tags, "no attribute states it; protocol or study say that there is none")
    unreadable = tuple(tag for tag, values in header.items() if any(UNREADABLE in value for value in values))
    if unreadable:
        return HeaderState("ambiguous", tuple(filter(None, unreadable)), "the header cannot be read")
    empty = tuple(tag for tag in (*AGENT_TEXT[:1], ROUTE) if tag in header)
    return HeaderState("absent", empty, "present and empty" if empty else "no attribute speaks of contrast")


def published_rule(slices: Sequence[SliceContrast]) -> str:
    """Return yes, no or absent by the rule of Ye et al. (2022): the first agent text; N, n and NO are no, all else yes.

    For their figure alone. An empty text counts as missing.
    """
    text = next((value for header in slices for value in header.get(AGENT_TEXT[0], ())), "")
    return "absent" if not text else "no" if text in ("N", "n", "NO") else "yes"
