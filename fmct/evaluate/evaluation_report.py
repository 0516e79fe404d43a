"""The report of an evaluation: one HTML page, results.json, patients.csv."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fmct.artefacts import write_json
from fmct.errors import ArtefactError
from fmct.evaluate.classification import Finding, counts, percent
from fmct.evaluate.evaluation import Evaluation, patient_rows
from fmct.evaluate.figures_evaluation import curves_figure, froc_figure
from fmct.evaluate.intervals import Interval
from fmct.evaluate.model_contrasts import MACRO, Comparison
from fmct.evaluate.report import Block, Facts, Figures, Picture, Section, Table, Text, write_report
from fmct.evaluate.worst_cases import Scans, case_figure, worst_cases
from fmct.table_files import write_rows

FORMAT = ("fmct-evaluation", "1.0")
RESULTS, PATIENTS, PAGE = "results.json", "patients.csv", "report.html"
_OVER_PATIENTS = "In brackets: 95 % intervals over patients."


def write_evaluation(
    evaluation: Evaluation, folder: str | Path, *, title: str = "Evaluation", scans: Scans | None = None
) -> Path:
    """Write OUT/results.json, OUT/patients.csv and OUT/report.html, and return the page's path."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows = patient_rows(evaluation)
        write_json(folder / RESULTS, *FORMAT, evaluation.to_dict())
        write_rows(folder / PATIENTS, list(dict.fromkeys(key for row in rows for key in row)), rows)
    except OSError as error:
        raise ArtefactError(f"{folder}: the results cannot be written ({error.strerror}).") from None
    subtitle = f"{_list(evaluation.models)} on {_list(evaluation.targets)}"
    return write_report(folder / PAGE, title, sections(evaluation, scans), subtitle=subtitle)


def sections(evaluation: Evaluation, scans: Scans | None = None) -> list[Section]:
    """Return the page's sections; those that have nothing to say are left out."""
    made = [
        Section("In short", _short(evaluation)),
        Section("Who was counted", _flow(evaluation)),
        Section("Ranking", _ranking(evaluation)),
        Section("Decisions", _decisions(evaluation)),
        Section("Calibration", _calibration(evaluation)),
        Section("Model against model", _comparisons(evaluation)),
        Section("Masks", _masks(evaluation)),
        Section("Lesions", _lesions(evaluation)),
        Section("Subgroups", _subgroups(evaluation)),
        Section("Series by series", _by_series(evaluation)),
        Section("Seed by seed", _seeds(evaluation)),
        Section("Worst cases", _worst(evaluation, scans)),
        Section("How it was measured", _method(evaluation)),
    ]
    return [section for section in made if section.blocks]


def _short(evaluation: Evaluation) -> list[Block]:
    model = evaluation.models[0]
    findings = list(evaluation.findings[model].values())
    several = model in evaluation.macro
    metrics = evaluation.macro[model] if several else findings[0].metrics
    what = f"mean of {len(findings)} findings" if several else findings[0].target
    patients = {patient for finding in findings for patient in finding.scores.patients}
    figures = [(str(len(patients)), "patients")]
    for name in ("AUROC", "AUPRC", "sensitivity", "specificity"):
        if name in metrics and metrics[name].estimate is not None:
            figures.append((_short_number(metrics[name]), name))
    result = evaluation.segmentation.get(model)
    if result is not None and result.summary["Dice"].estimate is not None:
        figures.append((_short_number(result.summary["Dice"]), "Dice of patients with a lesion"))
    auroc = metrics["AUROC"]
    said = f"{model}, {what}: AUROC {_bracketed(auroc)}"
    if auroc.estimate is None or auroc.low is None:
        said += "."
    else:
        said += ", 95 % interval over patients."
    others = [name for name in evaluation.models if name != model]
    compared = f" {_list(others)} beside it below." if others else ""
    return [Text(said + compared, "lead"), Figures(figures), *(Text(note, "note") for note in evaluation.notes)]


def _flow(evaluation: Evaluation) -> list[Block]:
    rows = []
    for finding in _all(evaluation.findings):
        n, flow = counts(finding.scores), finding.scores.flow
        numbers = [n["evaluated"], n["positive"], n["negative"], n["failed"], flow["series"], flow["failed series"]]
        absent = [flow["predicted, label unknown"], flow["labelled, not predicted"]]
        rows.append([_name(evaluation, finding), *map(str, [*numbers, *absent])])
    header = ["", "patients", "positive", "negative", "failed", "series", "failed", "label unknown", "not predicted"]
    return [
        Table(header, rows, "Patients with a prediction and a known label; then their series; then who is not counted.")
    ]


def _ranking(evaluation: Evaluation) -> list[Block]:
    names = [
        "AUROC",
        "AUPRC",
        "partial AUROC, FPR ≤ 0.1",
        *(f"sensitivity at specificity ≥ {s}" for s in ("0.90", "0.95", "0.99")),
    ]
    short = ["AUROC", "AUPRC", "share positive"]
    rows = []
    for finding in _all(evaluation.findings):
        shares = f"{finding.scores.labels.mean():.3f}"
        rows.append([_name(evaluation, finding), *(_bracketed(finding.metrics[n]) for n in names[:2]), shares])
    for model, metrics in evaluation.macro.items():
        rows.append([_macro_name(evaluation, model), *(_bracketed(metrics[n]) for n in names[:2]), "–"])
    more = [[_name(evaluation, f), *(_bracketed(f.metrics[n]) for n in names[2:])] for f in _all(evaluation.findings)]
    emphasis = range(len(rows) - len(evaluation.macro), len(rows))
    return [
        Picture(
            curves_figure(evaluation.findings, evaluation.targets),
            "Left: ROC; a ring marks the frozen operating point. Middle: precision against recall; the level line is the "
            "share of positives, what chance gives. Right: share positive against predicted probability, in bins of "
            "equal numbers of patients, with Wilson's 95 % intervals; on the diagonal, probabilities mean what they say.",
            f"ROC, precision-recall and reliability curves of {_list(evaluation.models)} for {_list(evaluation.targets)}",
        ),
        Table(["", *short], rows, f"{_OVER_PATIENTS} AUROC: DeLong. AUPRC (average precision): stratified bootstrap.", list(emphasis)),
        Table(
            ["", "partial AUROC, FPR ≤ .1", *(f"sensitivity at specificity ≥ {s}" for s in (".90", ".95", ".99"))],
            more,
            "Partial AUROC on McClish's scale, .5 is chance. These thresholds are chosen on the patients shown, so the "
            "sensitivities are optimistic; the frozen operating point is below.",
        ),
        *_failed_note(evaluation),
    ]  # fmt: skip


def _failed_note(evaluation: Evaluation) -> list[Block]:
    name = "AUROC, failed scans ranked worst"
    return [
        Text(f"{_name(evaluation, f)}: AUROC {_bracketed(f.metrics[name])} when failed scans are ranked worst.", "note")
        for f in _all(evaluation.findings)
        if name in f.metrics
    ]


def _decisions(evaluation: Evaluation) -> list[Block]:
    blocks: list[Block] = []
    rows, predictive = [], []
    for finding in _all(evaluation.findings):
        rows.append([_name(evaluation, finding), *(_counted(finding, n) for n in ("sensitivity", "specificity")), *(_counted(finding, n) for n in ("PPV", "NPV")), _bracketed(finding.metrics["F1"])])  # fmt: skip
        for prevalence in evaluation.settings.prevalences:
            both = [_bracketed(finding.metrics[f"{v} at prevalence {percent(prevalence)}"]) for v in ("PPV", "NPV")]
            predictive.append([_name(evaluation, finding), percent(prevalence), *both])
    for model, metrics in evaluation.macro.items():
        if "sensitivity" in metrics:
            rows.append([_macro_name(evaluation, model), *(_bracketed(metrics[n]) for n in ("sensitivity", "specificity")), "–", "–", _bracketed(metrics["F1"])])  # fmt: skip
    decided = [f for f in _all(evaluation.findings) if f.scores.decided]
    if not decided:
        reason = next(_all(evaluation.findings)).metrics["sensitivity"].note
        return [Text(f"Sensitivity, specificity, PPV, NPV and F1 are n/a: {reason}.", "note")]
    points = [f"{_name(evaluation, f)}: {_point(f)}." for f in decided]
    kind = evaluation.settings.proportions.replace("-", " and ").title().replace(" And ", " and ")
    blocks.append(Table(["", "sensitivity", "specificity", "PPV here", "NPV here", "F1"], rows, f"{_OVER_PATIENTS} {kind} for proportions, stratified bootstrap for F1. PPV and NPV here hold for this share of positives only."))  # fmt: skip
    blocks.append(Table(["", "prevalence", "PPV", "NPV"], predictive, "By Bayes' rule from sensitivity and specificity, at stated prevalences; stratified bootstrap."))  # fmt: skip
    return [Text("A score at or above the threshold is positive. Thresholds were frozen before these patients were scored."), *(Text(point, "note") for point in points), *blocks]  # fmt: skip


def _calibration(evaluation: Evaluation) -> list[Block]:
    rows, scaled = [], []
    for f in _all(evaluation.findings):
        names = ("Brier score", "ECE", "calibration slope", "calibration intercept")
        rows.append([_name(evaluation, f), *(_bracketed(f.metrics[n]) for n in names)])
        if "ECE" in f.calibrated:
            values = [f"{f.calibrated[n]:.3f}" for n in ("temperature", "ECE", "Brier score")]
            scaled.append([_name(evaluation, f), *values])
    blocks: list[Block] = [
        Table(
            ["", "Brier score", "ECE", "slope", "intercept"],
            rows,
            f"{_OVER_PATIENTS} ECE: {evaluation.settings.bins} bins of equal numbers of patients; it is biased upwards in "
            "small samples, so it has no interval. Slope 1 and intercept 0 are perfect; a slope below 1 is overconfident. "
            "Probabilities as predicted, not scaled.",
        )
    ]
    if scaled:
        blocks.append(
            Table(
                ["", "temperature", "ECE after", "Brier score after"],
                scaled,
                "Temperature scaling fitted on validation patients; it leaves every rank as it is.",
            )  # fmt: skip
        )
    return blocks


def _comparisons(evaluation: Evaluation) -> list[Block]:
    if not evaluation.comparisons and not evaluation.mask_contrasts:
        return []
    blocks: list[Block] = [
        Text(
            f"Listed before: {'; '.join(map(str, evaluation.contrasts))}. Paired by patient, on those that both models "
            "scored. Holm's correction is over all contrasts and findings of one metric."
        )
    ]
    several = len(evaluation.contrasts) > 1
    for contrast in evaluation.contrasts:
        found = [c for c in evaluation.comparisons if c.contrast == contrast]
        rows = [_comparison(c) for c in found]
        strong = [k for k, c in enumerate(found) if c.target == MACRO]
        if rows:
            blocks.append(
                Table(
                    [str(contrast) if several else "", "metric", "difference", "test", "p", "p, Holm"], rows, "", strong
                )
            )
    rows = [
        [str(r.contrast), metric, _signed(r.difference), "sign flips", _p(r.p), _p(r.p_holm)]
        for metric, results in evaluation.mask_contrasts.items()
        for r in results
    ]
    if rows:
        blocks.append(Table(["masks", "metric", "difference", "test", "p", "p, Holm"], rows))
    last = blocks[-1]
    if isinstance(last, Table):
        caption = f"First minus second. {_OVER_PATIENTS} For Brier score and HD95 less is better."
        blocks[-1] = Table(last.header, last.rows, caption, last.emphasis)
    return blocks


def _masks(evaluation: Evaluation) -> list[Block]:
    rows, notes = [], []
    for model, result in evaluation.segmentation.items():
        for name, interval in result.summary.items():
            spread = result.spread.get(name)
            tail = (
                [f"{spread[0]:.3f}", f"{spread[1]:.3f}", f"{spread[2]:.3f} to {spread[3]:.3f}"] if spread else ["–"] * 3
            )
            rows.append([f"{model}: {name}" if len(evaluation.segmentation) > 1 else name, str(interval.n), _bracketed(interval), *tail])  # fmt: skip
        rows.append([(f"{model}: " if len(evaluation.segmentation) > 1 else "") + "predicted ml without a lesion", str(result.false_ml.n), _bracketed(result.false_ml), "–", "–", "–"])  # fmt: skip
        notes += [Text(f"{model}: {note}", "note") for note in result.notes]
    if not rows:
        return []
    tolerance = next(iter(evaluation.segmentation.values())).tolerance_mm
    caption = (
        f"Patients with a lesion; several series of one are averaged first. {_OVER_PATIENTS} Surface Dice at "
        f"{tolerance:g} mm. HD95: patients with a prediction only. Nothing predicted of nothing is undefined, not 1."
    )
    return [Table(["", "patients", "mean", "SD", "median", "quartiles"], rows, caption), *notes]


def _lesions(evaluation: Evaluation) -> list[Block]:
    curves = {model: result.froc for model, result in evaluation.segmentation.items() if result.froc is not None}
    if not curves:
        return []
    first = next(iter(evaluation.segmentation.values()))
    rows = [
        [
            model,
            f"{curve.lesions} in {curve.subjects}",
            _bracketed(curve.mean),
            _bracketed(curve.sensitivity_all),
            _bracketed(curve.per_subject),
            _bracketed(curve.per_negative),
            _bracketed(curve.precision),
        ]
        for model, curve in curves.items()
    ]
    at = [[m, *(_bracketed(c.sensitivity_at[r]) for r in c.sensitivity_at)] for m, c in curves.items()]
    return [
        Text(str(first.rule)),
        Picture(
            froc_figure(curves),
            "FROC over all subjects, those without a lesion too: the share of lesions found by candidates of at least a "
            "score, against the candidates of that score that hit nothing. A dot is the highest sensitivity with at "
            "most so many false positives, its bar the 95 % interval over patients.",
            f"FROC curves of {_list(list(curves))}",
        ),
        Table(["sensitivity at FP per subject", "1/8", "1/4", "1/2", "1", "2", "4", "8"], at, _OVER_PATIENTS),
        Table(
            ["", "lesions, subjects", "mean of the seven", "lesions found", "FP per subject", "FP, no lesion", "precision"],
            rows,
            "From the fourth column on: every candidate counted.",
        ),
    ]  # fmt: skip


def _subgroups(evaluation: Evaluation) -> list[Block]:
    blocks: list[Block] = []
    for column in dict.fromkeys(group.column for group in evaluation.subgroups):
        chosen = [g for g in evaluation.subgroups if g.column == column]
        rows = [
            [
                g.value,
                _label(evaluation, g.model, g.target),
                f"{g.positive}/{g.patients}",
                *map(_bracketed, (g.auroc, g.sensitivity, g.specificity)),
            ]  # fmt: skip
            for g in chosen
        ]
        header = [column, "", "positive", "AUROC", "sensitivity", "specificity"]
        if len(evaluation.models) * len(evaluation.targets) == 1:
            header, rows = header[:1] + header[2:], [row[:1] + row[2:] for row in rows]
        blocks.append(Table(header, rows))
    if blocks:
        blocks.append(Text("Many subgroups, few patients each: differences between them are for looking, not for claims.", "note"))  # fmt: skip
    return blocks


def _by_series(evaluation: Evaluation) -> list[Block]:
    rows = []
    for f in _all(evaluation.by_series):
        patients = len(set(f.scores.patients))
        names = ("AUROC", "AUPRC", "sensitivity", "specificity")
        rows.append(
            [_name(evaluation, f), f"{len(f.scores.labels)} of {patients}", *(_bracketed(f.metrics[n]) for n in names)]
        )
    if not rows:
        return []
    said = (
        "Each series counted by itself, as some publications do. Series of one patient are not independent: intervals "
        "here draw patients, not series. The figures above, one decision per patient, are the primary ones."
    )
    return [
        Text(said),
        Table(["", "series, patients", "AUROC", "AUPRC", "sensitivity", "specificity"], rows, _OVER_PATIENTS),
    ]


def _seeds(evaluation: Evaluation) -> list[Block]:
    rows = []
    for f in _all(evaluation.findings):
        if f.seeds:
            values = ", ".join(f"{seed}: {value:.3f}" for seed, value in f.seeds.items())
            mean = sum(f.seeds.values()) / len(f.seeds)
            rows.append([_name(evaluation, f), f"{mean:.3f}", _bracketed(f.metrics["AUROC"]), values])
    if not rows:
        return []
    said = "Seeds are averaged within each patient first, so the figures above are of the seeds' mean probability."
    return [Text(said), Table(["AUROC", "mean of the seeds", "of their mean", "each seed alone"], rows)]


def _worst(evaluation: Evaluation, scans: Scans | None) -> list[Block]:
    cases = worst_cases(evaluation)
    if not cases:
        return []
    rows = [[case.patient, case.series, _label(evaluation, case.model, case.target), case.why] for case in cases]
    table = Table(
        ["patient", "series", "", "what"], rows, "The largest errors of each model, and the lowest Dice of its masks."
    )
    if scans is None:
        return [table]
    picture, drawn = case_figure(cases, scans)
    if not drawn:
        return [table, Text("None of their scans was found under the names of series or patients.", "note")]
    caption = "Orange: reference. Blue: prediction. Planes through the reference, else through the prediction, else the middle."
    return [Picture(picture, caption, "slices of the worst cases"), table]


def _method(evaluation: Evaluation) -> list[Block]:
    s = evaluation.settings
    facts = {
        "unit": "the patient; every interval and test draws or pairs patients",
        "seeds and folds": "averaged within a series first",
        "series of a patient": f"{'highest' if s.merge == 'max' else 'mean'} probability",
        "rows scored": f"split {evaluation.split}" if evaluation.split else "all but training and validation",
        "failed scans": "a wrong decision; left out of ranks and calibration, their number above",
        "AUROC": "DeLong, logit scale; patients with several series by Obuchowski; means over findings jointly",
        "bootstrap": f"{s.resamples:,} draws of patients, positives and negatives apart; BCa, percentile where undefined; seed {s.seed}",
        "proportions": s.proportions.replace("-", " and "),
        "tests": "paired DeLong; McNemar, exact; sign flips, exact up to 14 patients; Holm",
        "fewer than 6 patients": "values, no interval and no test",
        "unknown labels": "left out, never negative",
    }
    return [Facts(facts)]


def _all(findings: Mapping[str, Mapping[str, Finding]]) -> Iterator[Finding]:
    return (finding for found in findings.values() for finding in found.values())


def _name(evaluation: Evaluation, finding: Finding) -> str:
    return _label(evaluation, finding.model, finding.target)


def _label(evaluation: Evaluation, model: str, target: str) -> str:
    if len(evaluation.models) == 1:
        return target
    return model if len(evaluation.targets) == 1 and target in evaluation.targets else f"{model}: {target}"


def _macro_name(evaluation: Evaluation, model: str) -> str:
    return MACRO if len(evaluation.models) == 1 else f"{model}: {MACRO}"


def _point(finding: Finding) -> str:
    if finding.operating_point is not None:
        return f"threshold {finding.operating_point}"
    if finding.scores.thresholds:
        return "threshold ≥ " + ", ".join(f"{t:.4g}" for t in finding.scores.thresholds) + ", frozen in the predictions"
    return "decisions as predicted, by a rule other than a threshold of the probability"


def _counted(finding: Finding, name: str) -> str:
    interval = finding.metrics[name]
    if interval.estimate is None or finding.scores.unit != "patient":
        return _bracketed(interval)
    return f"{round(interval.estimate * interval.n)}/{interval.n} = {_bracketed(interval)}"


def _comparison(c: Comparison) -> list[str]:
    return [c.target, c.metric, _signed(c.difference), c.test, _p(c.p), _p(c.p_holm)]


def _bracketed(interval: Interval) -> str:
    if interval.estimate is None:
        return f"n/a: {interval.note}" if interval.note else "n/a"
    if interval.low is None or interval.high is None:
        return f"{interval.estimate:.3f}"
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _signed(interval: Interval) -> str:
    if interval.estimate is None:
        return f"n/a: {interval.note}"
    if interval.low is None or interval.high is None:
        return f"{interval.estimate:+.3f}"
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _short_number(interval: Interval) -> str:
    return f"{interval.estimate:.3f}" if interval.estimate is not None else "n/a"


def _p(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _list(names: Sequence[str]) -> str:
    if len(names) > 6:
        return ", ".join(names[:5]) + f" and {len(names) - 5} more"
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else "".join(names)
