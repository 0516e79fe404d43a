"""The page about a detector: what each stage leaves, the FROC, and every case's candidates where one can look at them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fmct.artefacts import write_json, write_text
from fmct.evaluate.figures import house_style, new_figure, png
from fmct.evaluate.figures_evaluation import froc_figure
from fmct.evaluate.report import Block, Facts, Figures, Picture, Section, Table, Text, write_report
from fmct.lesions.candidates import REMOVED, Candidate, scored_map, write_candidates
from fmct.lesions.evaluation import StageScores, final_froc, score_stage, stage_tables, table_rows
from fmct.lesions.preparation import Prepared
from fmct.lesions.settings import EvaluateConfig, LesionConfig
from fmct.lesions.subjects import Subject
from fmct.metrics.froc import RATES, Froc
from fmct.metrics.lesions import MatchedScan, MatchingRule, match_lesions

FORMAT = ("fmct-lesion-report", "1.0")
STAGE_NAMES = ("detection", "discrimination", "clean-up")
Case = tuple[Subject, Prepared, np.ndarray, list[Candidate]]  # the label map and its candidates with verdicts
_PICTURES = 12
_REACH_MM = 14.0
_SMALLEST = float(np.finfo(np.float32).tiny)


def rule_of(config: EvaluateConfig) -> MatchingRule:
    """Return the matching rule of a configuration; candidates are taken as they were found."""
    return MatchingRule(
        threshold=_SMALLEST,
        tolerance_mm=config.tolerance_mm,
        connectivity=config.connectivity,
        hit=config.hit,
        one_to_one=config.one_to_one,
        duplicates=config.duplicates,
    )


def matched(cases: Sequence[Case], rule: MatchingRule) -> dict[str, list[MatchedScan]]:
    """Return {stage: matched scans}: every candidate, those that the discriminator left, and those that are kept.

    Scores: the detector's for the first, the discriminator's for the others.
    """
    found: dict[str, list[MatchedScan]] = {name: [] for name in STAGE_NAMES}
    for subject, prepared, labels, candidates in cases:
        judged = [c for c in candidates if not c.reason.startswith("discriminator:")]
        kept = [c for c in candidates if c.verdict != REMOVED]
        for name, left in zip(STAGE_NAMES, (candidates, judged, kept), strict=True):
            score = "detector_score" if name == STAGE_NAMES[0] else "discriminator_score"
            values = scored_map(labels, left, score)
            found[name].append(
                match_lesions(
                    values, prepared.lesions, prepared.spacing_mm, rule, patient=subject.patient, scan=subject.series
                )
            )
    return found


def report(folder: Path, cases: Sequence[Case], config: LesionConfig) -> str:
    """Write report.html, table.md, results.json and candidates.csv of the cases, and return the tables as text."""
    rule = rule_of(config.evaluate)
    scans, resamples = matched(cases, rule), config.evaluate.resamples
    stages = [score_stage(name, found, resamples=resamples, seed=config.seed) for name, found in scans.items()]
    curve = final_froc(scans[STAGE_NAMES[-1]], resamples=resamples, seed=config.seed)
    text = stage_tables(stages, title=config.title)
    write_text(folder / "table.md", text)
    write_candidates(folder / "candidates.csv", [c for _, _, _, candidates in cases for c in candidates])
    settings = {"lesion_sign": config.lesion_sign, "split": config.evaluate.split, "rule": asdict(rule)}
    results = {"title": config.title, **settings, "stages": [s.to_dict() for s in stages], "froc": _tree(curve)}
    write_json(folder / "results.json", *FORMAT, results)
    sections = [
        Section("What each stage leaves", _stage_blocks(stages, rule)),
        Section("Lesions found against false positives", _froc_blocks(curve)),
        Section("Case by case", _case_blocks(cases, config)),
    ]
    write_report(folder / "report.html", config.title, sections, subtitle=_subtitle(stages[0], config))
    return text


def _subtitle(first: StageScores, config: LesionConfig) -> str:
    split = config.evaluate.split
    return f"{first.subjects} subjects of the split {split}, {first.lesions} lesions, {config.lesion_sign} on the image"


def _tree(curve: Froc) -> dict[str, Any]:
    tree = curve.to_dict()
    tree["curve"] = [point for point in tree["curve"] if np.isfinite(point["threshold"])]
    return tree


def _stage_blocks(stages: Sequence[StageScores], rule: MatchingRule) -> list[Block]:
    last = {m.name: m.value for m in stages[-1].pooled}
    big = [
        (f"{value.estimate:.2f}" if value.estimate is not None else "n/a", f"{name}, pooled, after clean-up")
        for name, value in last.items()
    ]
    pooled = table_rows({s.stage: s.pooled for s in stages})
    each = table_rows({s.stage: s.per_subject for s in stages})
    return [
        Figures(big),
        Table(*pooled, "Pooled over all lesions and candidates; 95 % intervals over subjects."),
        Table(*each, "Means over subjects: TPR of those with lesions, precision of those with a candidate."),
        Text(str(rule), "note"),
        Text("precision = TPR · N / (TPR · N + FP per subject · S) was checked for each pooled row.", "note"),
    ]


def _froc_blocks(curve: Froc) -> list[Block]:
    at = {f"{rate:g}": str(curve.sensitivity_at[rate]) for rate in RATES}
    facts = {f"sensitivity at {rate} FP per subject": value for rate, value in at.items()}
    facts |= {"mean of these": str(curve.mean), "FP per subject without a lesion": str(curve.per_negative)}
    if not curve.lesions:
        return [Text("No subject has a lesion: there is no sensitivity.", "note")]
    caption = (
        "Candidates that the clean-up kept, ranked by the discriminator; a point beyond the last would need others."
    )
    return [Picture(froc_figure({"candidates": curve}), caption, "FROC curve"), Facts(facts)]


def _case_blocks(cases: Sequence[Case], config: LesionConfig) -> list[Block]:
    rows = []
    for subject, prepared, labels, candidates in cases:
        hit = set(np.unique(labels[prepared.lesions]).tolist()) - {0}
        kept = [c for c in candidates if c.verdict != REMOVED]
        wrong = sum(c.candidate not in hit for c in kept)
        rows.append(
            [subject.patient, str(len(candidates)), str(len(kept)), str(wrong), str(int(prepared.lesions.any()))]
        )
    header = ["patient", "candidates", "kept", "kept, no lesion", "has lesions"]
    table = Table(header, rows[:40], f"{len(rows)} series; all candidates stand in candidates.csv.")
    pictures = gallery(cases)
    if not pictures:
        return [table]
    caption = (
        "Axial and coronal cuts through candidates and missed lesions, as the networks see them (lesions bright). Outlines: "
        "lesion solid, candidate dashed. The scores are the detector's and the discriminator's."
    )
    return [table, Picture(pictures, caption, "Cuts through candidates")]


def gallery(cases: Sequence[Case], *, most: int = _PICTURES) -> bytes:
    """Return a PNG of cuts through what is most worth a look: misses, kept false candidates, then hits; b"" for none."""
    shown: list[tuple[int, str, Prepared, np.ndarray, tuple[int, ...]]] = []
    for subject, prepared, labels, candidates in cases:
        hit = set(np.unique(labels[prepared.lesions]).tolist()) - {0}
        for c in candidates:
            true = c.candidate in hit
            fate = "kept" if c.verdict != REMOVED else "removed"
            rank = {(True, "removed"): 1, (False, "kept"): 2, (True, "kept"): 3, (False, "removed"): 4}[(true, fate)]
            words = f"{subject.patient}\n{'lesion' if true else 'no lesion'}, {fate}\n{c.detector_score:.2f}, {c.discriminator_score:.2f}"
            shown.append((rank, words, prepared, labels, c.centre))
    groups: list[list[Any]] = [[s for s in shown if s[0] == rank][: max(1, most // 4)] for rank in (1, 2, 3, 4)]
    picked = [one for group in groups for one in group][:most]
    if not picked:
        return b""
    with house_style():
        figure = new_figure(7.2, 1.7 * 2 * -(-len(picked) // 6))
        axes = figure.subplots(2 * -(-len(picked) // 6), 6, squeeze=False)
        for axis in axes.ravel():
            axis.axis("off")
        for number, (_, words, prepared, labels, centre) in enumerate(picked):
            row, column = 2 * (number // 6), number % 6
            axes[row][column].set_title(words, fontsize=5.5)
            for below, along in enumerate((0, 1)):
                _cut(axes[row + below][column], prepared, labels, centre, along)
        return png(figure)


def _cut(axes: Any, prepared: Prepared, labels: np.ndarray, centre: tuple[int, ...], along: int) -> None:
    reach = [round(_REACH_MM / s) for s in prepared.spacing_mm]
    box: list[Any] = [slice(max(c - r, 0), c + r + 1) for c, r in zip(centre, reach, strict=True)]
    box[along] = centre[along]
    image = prepared.channels[0][tuple(box)]
    low, high = np.percentile(prepared.channels[0][prepared.brain], [1, 99.9])
    origin = "upper" if along == 0 else "lower"
    steps = [s for k, s in enumerate(prepared.spacing_mm) if k != along]
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin=origin, aspect=steps[0] / steps[1])
    for mask, style, colour in ((prepared.lesions, "solid", "#E69F00"), (labels > 0, "dashed", "#56B4E9")):
        part = mask[tuple(box)]
        if part.any() and not part.all():
            axes.contour(part, [0.5], colors=colour, linestyles=style, linewidths=0.7)
