"""A gate before scans whose contrast is known: n of N right, exactly, with the HU baseline beside it.

  python -m fmct.contrast.known_scans MODEL FOLDER LABELS OUT

LABELS is a table with the columns series and contrast (1 or 0), a row for every scan of FOLDER; series is its file or
DICOM folder. OUT gets known_scans.json and known_scans.md. Nothing is fitted here: not one threshold.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fmct.artefacts import write_json, write_text
from fmct.contrast.audit import read_truth
from fmct.contrast.audit_sources import Gate, audited_series
from fmct.contrast.gate import ContrastCall, load_gate
from fmct.contrast.hu_baseline import baseline_in
from fmct.errors import DataError, told_to_the_user
from fmct.metrics.intervals import Interval
from fmct.metrics.proportions import proportion_interval
from fmct.tasks.contrast import LABELS

FORMAT = ("fmct-contrast-known-scans", "1.0")


def judge_known_scans(
    gate: Gate, folder: str | Path, labels: str | Path, *, baseline_says: Callable[[float], str] | None = None
) -> list[dict[str, Any]]:
    """Return a row for each scan: series, contrast (1 or 0), probability, decision, right, baseline, baseline_right.

    right: an uncertain decision is not. baseline: the HU baseline's probability, and baseline_says its decision on that
    (its own threshold and band; None: yes above .5); None where the gate has no baseline. Raises DataError for labels
    that miss, repeat or do not know a series.
    """
    says = baseline_says or (lambda probability: "yes" if probability > 0.5 else "no")
    items = list(audited_series([folder]))
    truth = read_truth(labels, [item.series for item in items])
    unknown = [item.series for item in items if item.series not in truth]
    if unknown:
        raise DataError(f"{labels}: contrast is empty for {', '.join(unknown[:5])}; every scan's has to be known here.")
    rows = []
    for item in items:
        try:
            call, reason = item.call(gate), ""
        except DataError as error:
            call, reason = None, f"not read: {error}"
        rows.append(_row(item.series, truth[item.series], call, reason, says))
    return rows


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Interval]:
    """Return the share of scans that are right, with Clopper and Pearson's interval, of `gate` and, where there is one,
    of the `HU baseline`: a scan that was not read is not right. `uncertain`: the share that the gate does not decide.
    """
    count = len(rows)
    found = {"gate": proportion_interval(sum(row["right"] for row in rows), count, method="clopper-pearson")}
    told = [row["baseline_right"] for row in rows]
    if any(right is not None for right in told):
        found["HU baseline"] = proportion_interval(sum(map(bool, told)), count, method="clopper-pearson")
    undecided = sum(row["decision"] == "uncertain" for row in rows)
    found["uncertain"] = proportion_interval(undecided, count, method="clopper-pearson")
    return found


def report(rows: Sequence[dict[str, Any]], model: str) -> str:
    """Return the rows and the shares as Markdown."""
    shares = summarise(rows)
    positive = sum(row["contrast"] for row in rows)
    lines = [
        f"{len(rows)} scans, {positive} with contrast; model {model}. Used for neither training nor thresholds.",
        "",
    ]
    lines += [
        "| scan | contrast | probability | decision | right | HU baseline | right |",
        "|---|---|---:|---|---|---:|---|",
    ]
    for row in rows:
        cells = [row["series"], _yes(row["contrast"]), _share(row["probability"]), row["decision"], _yes(row["right"])]
        cells += [_share(row["baseline"]), "" if row["baseline_right"] is None else _yes(row["baseline_right"])]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for name, share in shares.items():
        hits = round((share.estimate or 0) * share.n)
        lines.append(f"- {name}: {hits}/{share.n}, 95 % {share.low:.2f} to {share.high:.2f} (Clopper-Pearson)")
    reasons = [f"- {row['series']}: {row['reason']}" for row in rows if row["reason"]]
    return "\n".join([*lines, *reasons]) + "\n"


def _row(
    series: str, contrast: int, call: ContrastCall | None, reason: str, says: Callable[[float], str]
) -> dict[str, Any]:
    known = call is not None and call.probability == call.probability
    baseline = call.baseline_probability if call is not None else None
    decision, right = call.decision if call is not None else "uncertain", "yes" if contrast else "no"
    return {
        "series": series,
        "contrast": contrast,
        "probability": float(call.probability) if call is not None and known else None,
        "phase": call.phase if call is not None else None,
        "decision": decision,
        "right": decision == right,
        "baseline": None if baseline is None else float(baseline),
        "baseline_right": None if baseline is None else says(baseline) == right,
        "reason": call.reason if call is not None else reason,
    }


def _yes(value: Any) -> str:
    return "yes" if value else "no"


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


@told_to_the_user
def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the scans as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fmct.contrast.known_scans",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="folder or hub id of an exported contrast model")
    parser.add_argument("folder", metavar="FOLDER", help="folder of scans")
    parser.add_argument("labels", metavar="LABELS", help="table of series and contrast")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    chosen = parser.parse_args(arguments)
    gate = load_gate(chosen.model)
    baseline = baseline_in(gate.model.folder)
    says = None if baseline is None else lambda p: baseline.decision.call(LABELS[0], p) or "uncertain"
    rows = judge_known_scans(gate, chosen.folder, chosen.labels, baseline_says=says)
    chosen.out.mkdir(parents=True, exist_ok=True)
    text = report(rows, chosen.model)
    shares = {name: share.to_dict() for name, share in summarise(rows).items()}
    write_json(chosen.out / "known_scans.json", *FORMAT, {"model": chosen.model, "scans": rows, "shares": shares})
    write_text(chosen.out / "known_scans.md", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
