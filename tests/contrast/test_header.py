"""What headers say of contrast, string by string (acceptance check 10 of the reference)."""

import pytest

from fmct.contrast.header import agent_says, description_says, judge, judge_series
from fmct.io.dicom_contrast import UNREADABLE

AGENTS = {
    "NO": "no",
    "N": "no",
    "n": "no",
    "no": "no",
    "none": "no",
    "None": "no",
    "w/o": "no",
    "0": "no",
    "NO CONTRAST": "no",
    "without": "no",
    "WITHOUT IV CONTRAST": "no",
    "no iv contrast": "no",
    "kein KM": "no",
    "": "nothing",
    "   ": "nothing",
    "N/A": "nothing",
    "Omnipaque 350": "yes",
    "ISOVUE": "yes",
    "ISOVUE-300": "yes",
    "YES": "yes",
    "Y": "yes",
    "1": "yes",
    "ULTRAVIST 370 100ML": "yes",
    "APPLIED": "yes",
    "IV": "yes",
    "I.V. CONTRAST": "yes",
    "ORAL & IV": "yes",
    "no oral, iv only": "yes",
    "ORAL": "gut",
    "RECTAL": "gut",
    "Oral contrast": "gut",
    "GASTROGRAFIN": "gut",
    "BARIUM": "gut",
    "W/WO": "unclear",
    "with and without": "unclear",
    "XXQ": "unclear",
    "100": "unclear",
    f"Omni{UNREADABLE}": "unclear",
}
DESCRIPTIONS = {
    "Abdomen w/o contrast": "no",
    "CT HEAD WO CONTRAST": "no",
    "Thorax nativ": "no",
    "NCCT HEAD": "no",
    "unenhanced": "no",
    "Non-Contrast 5mm": "no",
    "ABD W CONTRAST": "yes",
    "portal venous 3.0": "yes",
    "CTA chest": "yes",
    "Abd C+": "yes",
    "arterial phase": "yes",
    "Thorax mit KM": "yes",
    "Abd w & w/o contrast": "unclear",
    "Abdomen with and without": "unclear",
    "THORAX 1.0 B70f": "nothing",
    "Topogram": "nothing",
    "": "nothing",
    "Schaedel venkel": "nothing",
}


@pytest.mark.parametrize("text", AGENTS)
def test_agent_strings(text: str) -> None:
    assert agent_says(text) == AGENTS[text]


@pytest.mark.parametrize("text", DESCRIPTIONS)
def test_descriptions(text: str) -> None:
    assert description_says(text) == DESCRIPTIONS[text]


@pytest.mark.parametrize("text", ["NO", "N", "no", "none", "w/o", "", "   ", "0"])
def test_check_10_no_or_absent(text: str) -> None:
    assert judge({"ContrastBolusAgent": (text,)}).state in ("no", "absent")


@pytest.mark.parametrize("text", ["Omnipaque 350", "ISOVUE", "YES"])
def test_check_10_yes(text: str) -> None:
    verdict = judge({"ContrastBolusAgent": (text,)})
    assert (verdict.state, verdict.tags) == ("yes", ("ContrastBolusAgent",))


HEADERS = [
    ({}, "absent", ()),
    ({"ContrastBolusAgent": ("",)}, "absent", ("ContrastBolusAgent",)),
    ({"ContrastBolusRoute": ("ORAL",)}, "ambiguous", ("ContrastBolusRoute",)),
    ({"ContrastBolusRoute": ("RECTAL",)}, "ambiguous", ("ContrastBolusRoute",)),
    ({"ContrastBolusRoute": ("IV",)}, "yes", ("ContrastBolusRoute",)),
    ({"ContrastBolusRoute": ("ORAL", "INTRAVENOUS")}, "yes", ("ContrastBolusRoute",)),
    ({"ContrastBolusAgent": ("Omnipaque",), "ContrastBolusRoute": ("ORAL",)}, "ambiguous", ("ContrastBolusRoute",)),
    (
        {"ContrastBolusAgent": ("NO",), "ContrastBolusRoute": ("IV",)},
        "ambiguous",
        ("ContrastBolusRoute", "ContrastBolusAgent"),
    ),
    (
        {"ContrastBolusAgentAdministered": ("NO",), "ContrastBolusAgent": ("Omnipaque 350",)},
        "no",
        ("ContrastBolusAgentAdministered",),
    ),
    ({"ContrastBolusAgentAdministered": ("YES",)}, "yes", ("ContrastBolusAgentAdministered",)),
    ({"ContrastBolusAgentAdministered": ("YES", "NO")}, "ambiguous", ("ContrastBolusAgentAdministered",)),
    (
        {"ContrastBolusAgentAdministered": ("YES",), "ContrastBolusAgentDetected": ("NO",)},
        "ambiguous",
        ("ContrastBolusAgentAdministered", "ContrastBolusAgentDetected"),
    ),
    ({"ContrastBolusAgentSequence": ("Iohexol",)}, "yes", ("ContrastBolusAgentSequence",)),
    (
        {"ContrastBolusAdministrationRouteSequence": ("Intravenous route",)},
        "yes",
        ("ContrastBolusAdministrationRouteSequence",),
    ),
    ({"ContrastFlowRate": ("3.5",)}, "yes", ("ContrastFlowRate",)),
    ({"ContrastFlowRate": ("0",)}, "absent", ()),
    ({"ContrastBolusVolume": ("100",)}, "ambiguous", ("ContrastBolusVolume",)),
    (
        {"ContrastBolusAgent": ("NO",), "ContrastFlowRate": ("3",)},
        "ambiguous",
        ("ContrastFlowRate", "ContrastBolusAgent"),
    ),
    ({"SeriesDescription": ("Abd w/o contrast",)}, "no", ("SeriesDescription",)),
    ({"SeriesDescription": ("portal venous",)}, "yes", ("SeriesDescription",)),
    ({"StudyDescription": ("CT ABD W CONTRAST",)}, "ambiguous", ("StudyDescription",)),
    ({"StudyDescription": ("CT HEAD W/O CONTRAST",)}, "no", ("StudyDescription",)),
    ({"SeriesDescription": ("native",), "StudyDescription": ("CT ABD W CONTRAST",)}, "no", ("SeriesDescription",)),
    (
        {"ContrastBolusAgent": ("ISOVUE",), "SeriesDescription": ("pre contrast",)},
        "ambiguous",
        ("ContrastBolusAgent", "SeriesDescription"),
    ),
    ({"ContrastBolusAgent": (UNREADABLE,)}, "ambiguous", ("ContrastBolusAgent",)),
    ({"": (UNREADABLE,)}, "ambiguous", ()),
]


@pytest.mark.parametrize(("header", "state", "tags"), HEADERS)
def test_headers(header: dict[str, tuple[str, ...]], state: str, tags: tuple[str, ...]) -> None:
    verdict = judge(header)
    assert (verdict.state, verdict.tags) == (state, tags)
    assert verdict.reason


def test_check_10_disagreeing_slices_are_ambiguous() -> None:
    yes, no = {"ContrastBolusAgent": ("ISOVUE",)}, {"ContrastBolusAgent": ("NO",)}
    verdict = judge_series([yes, yes, no])
    assert verdict.state == "ambiguous"
    assert "2 yes" in verdict.reason
    assert "1 no" in verdict.reason
    assert judge_series([yes, {}]).state == "ambiguous"
    assert judge_series([yes, yes]).state == "yes"
    assert judge_series([]).state == "absent"


def test_reasons_hold_no_free_text() -> None:
    verdict = judge({"ContrastBolusAgent": ("Mrs Example 100",), "SeriesDescription": ("for Dr Example",)})
    assert "example" not in verdict.reason.lower()
