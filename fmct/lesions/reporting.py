"""The page about a detector: what each stage leaves, the FROC, and the candidates where one can look at them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from fmct.artefacts import write_json, write_text
from fmct.evaluate.figures import house_style, new_figure, png
from fmct.evaluate.figures_evaluation import froc_figure
from fmct.evaluate.report import Block, Facts, Figures, Picture, Section, Table, Text, write_report
from fmct.lesions.candidates import REMOVED, Candidate, scored_map, write_candidates
from fmct.lesions.evaluation import StageScores, final_froc, score_stage, stage_tables, table_rows
from fmct.lesions.settings import EvaluateConfig
from fmct.metrics.froc import RATES, Froc
from fmct.metrics.lesions import MatchedScan, MatchingRule, match_lesions

FORMAT = ("fmct-lesion-report", "1.0")
STAGE_NAMES = ("detection", "discrimination", "clean-up")
_PICTURES = 12
_COLUMNS = 6
_REACH_MM = 14.0
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Case:
    """One series to judge. lesions: bool reference; labels: map of all its candidates, on the same grid; candidates:
    with verdicts. image: what is drawn, lesions bright, or None. shown: where its contrast is taken from. ignore: bool
    regions that count neither way, or None.
    """

    patient: str
    series: str
    lesions: np.ndarray
    labels: np.ndarray
    candidates: list[Candidate]
    spacing_mm: tuple[float, float, float]
    image: np.ndarray | None = None
    shown: np.ndarray | None = None
    ignore: np.ndarray | None = None

    @property
    def hit(self) -> set[int]:
        """The candidates that overlap a lesion."""
        return set(np.unique(self.labels[self.lesions]).tolist()) - {0}

    @property
    def doubtful(self) -> set[int]:
        """The candidates that overlap no lesion, but a region to ignore."""
        return set() if self.ignore is None else set(np.unique(self.labels[self.ignore]).tolist()) - {0} - self.hit


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
    for case in cases:
        candidates = case.candidates
        judged = [c for c in candidates if not c.reason.startswith("discriminator:")]
        kept = [c for c in candidates if c.verdict != REMOVED]
        for name, left in zip(STAGE_NAMES, (candidates, judged, kept), strict=True):
            score = "detector_score" if name == STAGE_NAMES[0] else "discriminator_score"
            values = scored_map(case.labels, left, score)
            names = {"patient": case.patient, "scan": case.series}
            found[name].append(match_lesions(values, case.lesions, case.spacing_mm, rule, ignore=case.ignore, **names))
    return found


def report(
    folder: Path, cases: Sequence[Case], config: EvaluateConfig, *, title: str, lesion_sign: str, seed: int = 0
) -> str:
    """Write report.html, table.md, results.json and candidates.csv of the cases, and return the tables as text."""
    rule = rule_of(config)
    scans, resamples = matched(cases, rule), config.resamples
    stages = [score_stage(name, found, resamples=resamples, seed=seed) for name, found in scans.items()]
    curve = final_froc(scans[STAGE_NAMES[-1]], resamples=resamples, seed=seed)
    text = stage_tables(stages, title=title)
    write_text(folder / "table.md", text)
    write_candidates(folder / "candidates.csv", [c for case in cases for c in case.candidates])
    settings = {"lesion_sign": lesion_sign, "split": config.split, "rule": asdict(rule)}
    results = {"title": title, **settings, "stages": [s.to_dict() for s in stages], "froc": _tree(curve)}
    write_json(folder / "results.json", *FORMAT, results)
    sections = [
        Section("What each stage leaves", _stage_blocks(stages, rule)),
        Section("Lesions found against false positives", _froc_blocks(curve)),
        Section("Case by case", _case_blocks(cases)),
    ]
    first, split = stages[0], f" of the split {config.split}" if config.split else ""
    subtitle = f"{first.subjects} subjects{split}, {first.lesions} lesions, {lesion_sign} on the image"
    write_report(folder / "report.html", title, sections, subtitle=subtitle)
    return text


def _tree(curve: Froc) -> dict[str, Any]:
    tree = curve.to_dict()
    points = [point for point in tree["curve"] if np.isfinite(point["threshold"])]
    # Where no subject has a lesion there is no sensitivity, and JSON has no NaN.
    tree["curve"] = [{key: value if np.isfinite(value) else None for key, value in p.items()} for p in points]
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
        Text(str(rule).replace(f"values ≥ {rule.threshold:g}", "what the detector proposed"), "note"),
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


def _case_blocks(cases: Sequence[Case]) -> list[Block]:
    rows = []
    for case in cases:
        kept, known_of = [c for c in case.candidates if c.verdict != REMOVED], case.hit | case.doubtful
        wrong = sum(c.candidate not in known_of for c in kept)
        known = "yes" if case.lesions.any() else "no"
        rows.append([case.patient, str(len(case.candidates)), str(len(kept)), str(wrong), known])
    header = ["patient", "candidates", "kept", "kept, no lesion", "has lesions"]
    table = Table(header, rows[:40], f"{len(rows)} series; all candidates stand in candidates.csv.")
    pictures = gallery(cases)
    if not pictures:
        return [table]
    caption = (
        "Axial and coronal cuts through candidates and missed lesions, as the networks see them (lesions bright). "
        "Outlines: lesion solid, candidate dashed. The scores are the detector's and the discriminator's. Candidates "
        "on regions to ignore are not shown."
    )
    return [table, Picture(pictures, caption, "Cuts through candidates")]


def gallery(cases: Sequence[Case], *, most: int = _PICTURES) -> bytes:
    """Return a PNG of cuts through what is worth a look: misses, false candidates, hits; b"" for none."""
    shown: list[tuple[int, str, Case, tuple[int, ...]]] = []
    for case in cases:
        if case.image is None:
            continue
        hit, doubtful = case.hit, case.doubtful
        for centre in missed_lesions(case):
            shown.append((0, f"{case.patient}\nlesion\nno candidate", case, centre))
        for c in (c for c in case.candidates if c.candidate not in doubtful):
            true, kept = c.candidate in hit, c.verdict != REMOVED
            rank = {(True, False): 1, (False, True): 2, (True, True): 3, (False, False): 4}[(true, kept)]
            scores = f"{c.detector_score:.2f}, {c.discriminator_score:.2f}"
            fate = f"{'lesion' if true else 'no lesion'}, {'kept' if kept else 'removed'}"
            shown.append((rank, f"{case.patient}\n{fate}\n{scores}", case, c.centre))
    groups = [[one for one in shown if one[0] == rank][: max(1, most // 4)] for rank in range(5)]
    picked = [one for group in groups for one in group][:most]
    if not picked:
        return b""
    rows = 2 * -(-len(picked) // _COLUMNS)
    with house_style():
        figure = new_figure(7.2, 1.6 * rows)
        axes = figure.subplots(rows, _COLUMNS, squeeze=False)
        for axis in axes.ravel():
            axis.axis("off")
        for number, (_, words, case, centre) in enumerate(picked):
            row, column = 2 * (number // _COLUMNS), number % _COLUMNS
            axes[row][column].set_title(words, fontsize=5.5)
            for along in (0, 1):
                _cut(axes[row + along][column], case, centre, along)
        return png(figure)


def missed_lesions(case: Case) -> list[tuple[int, ...]]:
    """Return the middle voxels (z, y, x) of the lesions that no candidate overlaps."""
    lesions = np.zeros(case.lesions.shape, dtype=np.int32)
    ndimage.label(case.lesions, np.ones((3, 3, 3)), output=lesions)
    met = set(np.unique(lesions[case.labels > 0]).tolist())
    return [
        tuple(int(np.floor(v + 0.5)) for v in np.argwhere(lesions == number).mean(axis=0))
        for number in range(1, int(lesions.max(initial=0)) + 1)
        if number not in met
    ]


def _cut(axes: Any, case: Case, centre: tuple[int, ...], along: int) -> None:
    assert case.image is not None
    reach = [round(_REACH_MM / s) for s in case.spacing_mm]
    box: list[Any] = [slice(max(c - r, 0), c + r + 1) for c, r in zip(centre, reach, strict=True)]
    box[along] = centre[along]
    low, high = np.percentile(case.image if case.shown is None else case.image[case.shown], [1, 99.9])
    origin = "upper" if along == 0 else "lower"
    steps = [s for k, s in enumerate(case.spacing_mm) if k != along]
    axes.imshow(case.image[tuple(box)], cmap="gray", vmin=low, vmax=high, origin=origin, aspect=steps[0] / steps[1])
    for mask, style, colour in ((case.lesions, "solid", "#E69F00"), (case.labels > 0, "dashed", "#56B4E9")):
        part = mask[tuple(box)]
        if part.any() and not part.all():
            axes.contour(part, [0.5], colors=colour, linestyles=style, linewidths=0.7)
