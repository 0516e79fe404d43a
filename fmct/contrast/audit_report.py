"""The report of an audit: header x model x label, how often the header is missing or wrong, and who disagrees."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmct.artefacts import write_json
from fmct.contrast.audit import Audit
from fmct.contrast.header import STATES
from fmct.evaluate.report import Facts, Figures, Section, Table, Text, write_report
from fmct.metrics.intervals import Interval, bootstrap_interval
from fmct.metrics.proportions import proportion_interval

FORMAT = ("fmct-contrast-audit-report", "1.0")
PUBLISHED = (1496, 1979)
"""Scans of Ye et al. (2022) whose tag was missing or wrong, and all of them."""
_SHOWN = 50


def write_audit_report(audit: Audit) -> Path:
    """Write OUT/report.json and OUT/report.html and return the page's path."""
    content = summarise(audit.rows)
    write_json(audit.folder / "report.json", *FORMAT, {"model": audit.model, **content})
    return write_report(
        audit.folder / "report.html", "Contrast headers", _sections(audit, content), subtitle=_subtitle(audit)
    )


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return counts and rates of an audit's rows, plain JSON values.

    The truth is the label; without one, the decision of the model (`truth` says which). missing: headers that are
    absent. wrong: headers that say yes or no, of known truth, and say the other. missing_or_wrong: both, and what is
    ambiguous, among series of known truth; `published_rule` is the same by the published reading of one tag.
    """
    labelled = [row for row in rows if row.get("label") is not None]
    by_label = bool(labelled)
    truth = {row["series"]: _truth(row, by_label) for row in rows}
    kind = "label" if by_label else "model" if any(row["probability"] is not None for row in rows) else ""
    if not kind:
        truth = dict.fromkeys(truth)
    cells = Counter((row["header"], row["decision"], _word(row.get("label"))) for row in rows)
    return {
        "series": len(rows),
        "patients": len({row["patient"] or row["series"] for row in rows}),
        "truth": kind,
        "confusion": [
            {"header": header, "decision": decision, "label": label, "series": count}
            for (header, decision, label), count in sorted(cells.items())
        ],
        "missing": _share(rows, [row["header"] == "absent" for row in rows]).to_dict(),
        "ambiguous": _share(rows, [row["header"] == "ambiguous" for row in rows]).to_dict(),
        "disagreement": _share(*_among(rows, [row["disagreement"] for row in rows])).to_dict(),
        "wrong": _wrong(rows, "header", truth).to_dict(),
        "missing_or_wrong": _missing_or_wrong(rows, "header", truth).to_dict(),
        "published_rule": {
            "wrong": _wrong(rows, "published_rule", truth).to_dict(),
            "missing_or_wrong": _missing_or_wrong(rows, "published_rule", truth).to_dict(),
        },
    }


def _truth(row: Mapping[str, Any], by_label: bool) -> str | None:
    if by_label:
        return None if row.get("label") is None else _word(row["label"])
    return row["decision"] if row["decision"] in ("yes", "no") else None


def _word(label: Any) -> str:
    return "unknown" if label is None else "yes" if int(label) else "no"


def _among(rows: Sequence[Mapping[str, Any]], words: Sequence[str]) -> tuple[list[Mapping[str, Any]], list[bool]]:
    """Return the rows that have a yes or no, and which are yes."""
    return [row for row, word in zip(rows, words, strict=True) if word], [word == "yes" for word in words if word]


def _wrong(rows: Sequence[Mapping[str, Any]], column: str, truth: Mapping[str, str | None]) -> Interval:
    told = [row for row in rows if row[column] in ("yes", "no") and truth[row["series"]]]
    return _share(told, [row[column] != truth[row["series"]] for row in told])


def _missing_or_wrong(rows: Sequence[Mapping[str, Any]], column: str, truth: Mapping[str, str | None]) -> Interval:
    counted = [row for row in rows if truth[row["series"]]]
    # What contradicts itself cannot be used either: it counts as missing.
    return _share(counted, [row[column] != truth[row["series"]] for row in counted])


def _share(rows: Sequence[Mapping[str, Any]], hits: Sequence[bool]) -> Interval:
    """Return the share of hits: exact where every patient has one series, else over patients drawn anew."""
    patients = [row["patient"] or row["series"] for row in rows]
    if len(set(patients)) == len(patients):
        return proportion_interval(sum(hits), len(hits), method="clopper-pearson")
    values = np.asarray(hits, dtype=np.float64)
    return bootstrap_interval(lambda drawn: float(values[drawn].mean()), patients, method="percentile")


def _subtitle(audit: Audit) -> str:
    return f"{len(audit.rows)} series, {'model ' + audit.model if audit.model else 'no model'}"


def _sections(audit: Audit, content: Mapping[str, Any]) -> list[Section]:
    return [
        Section("In short", _short(content)),
        Section("Header, model, label", [_confusion(content), _attributes(audit.rows)]),
        Section("Who disagrees", _disagreements(audit.rows)),
    ]


def _short(content: Mapping[str, Any]) -> list[Any]:
    of = {"label": "the labels", "model": "the model's decisions", "": "nothing: neither labels nor a model are given"}
    figures = [
        (_told(content["missing_or_wrong"]), "headers missing or wrong"),
        (_told(content["missing"]), "headers missing"),
        (_told(content["wrong"]), "wrong among those that say yes or no"),
    ]
    published = f"{PUBLISHED[0]} of {PUBLISHED[1]} ({PUBLISHED[0] / PUBLISHED[1]:.1%}), labels by experts from images"
    facts = {
        "measured against": of[content["truth"]],
        "series, patients": f"{content['series']}, {content['patients']}",
        "by the published rule, missing or wrong": _told(content["published_rule"]["missing_or_wrong"]),
        "published (Ye et al. 2022), missing or wrong": published,
        "ambiguous": _told(content["ambiguous"]),
        "header against model": _told(content["disagreement"]) + " disagree",
    }
    note = (
        "Missing: no attribute says yes or no. An ambiguous header is of no use either, and counts as missing in the "
        "first figure. The published rule reads ContrastBolusAgent alone and takes every text but N, n and NO for yes. "
        "Intervals: 95 %, Clopper-Pearson, or by redrawing patients where they have several series."
    )
    return [Figures(figures), Facts(facts), Text(note, "note")]


def _told(interval: Mapping[str, Any]) -> str:
    if interval["estimate"] is None:
        return "n/a"
    bounds = "" if interval["low"] is None else f" [{interval['low']:.1%}, {interval['high']:.1%}]"
    return f"{interval['estimate']:.1%}{bounds}"


def _confusion(content: Mapping[str, Any]) -> Table:
    order = {state: number for number, state in enumerate(STATES)}
    cells = sorted(content["confusion"], key=lambda c: (order[c["header"]], c["decision"], c["label"]))
    rows = [[c["header"], c["decision"], c["label"], str(c["series"])] for c in cells]
    return Table(["header", "decision", "label", "series"], rows, "Without a model the decision is the header's own.")


def _attributes(rows: Sequence[Mapping[str, Any]]) -> Table:
    counts = Counter((tag, row["header"]) for row in rows for tag in (row["tags"].split() or ["none"]))
    cells = [[tag, state, str(count)] for (tag, state), count in counts.most_common()]
    return Table(["attribute that decided", "header", "series"], cells)


def _disagreements(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    found = [row for row in rows if row["disagreement"] == "yes" or row["decision"] == "uncertain"]
    cells = [
        [
            row["series"],
            row["header"],
            row["decision"],
            "" if row["probability"] is None else f"{row['probability']:.3f}",
            row["reason"],
        ]
        for row in found[:_SHOWN]
    ]
    more = f"{len(found) - _SHOWN} more are in table.csv." if len(found) > _SHOWN else ""
    if not cells:
        return [Text("No series whose header and decision differ, and none that is uncertain.")]
    return [Table(["series", "header", "decision", "probability", "reason"], cells, more)]


def in_short(audit: Audit) -> str:
    """Return the audit in one line."""
    content = summarise(audit.rows)
    against = f" against {content['truth']}s" if content["truth"] else ""
    return (
        f"{content['series']} series of {content['patients']} patients: headers missing {_told(content['missing'])}, "
        f"missing or wrong{against} {_told(content['missing_or_wrong'])}."
    )
