"""The report's tables on classification: who was counted, ranking, decisions, calibration, subgroups, series."""

from fmct.evaluate.abstention import DECIDED, UNCERTAIN
from fmct.evaluate.classification import NO_THRESHOLD, Finding, counts, percent
from fmct.evaluate.evaluation import Evaluation
from fmct.evaluate.evaluation_cells import bracketed, counted, every, label, listed, macro_name, name
from fmct.evaluate.figures_evaluation import curves_figure
from fmct.evaluate.report import Block, Picture, Table, Text

OVER_PATIENTS = "In brackets: 95 % intervals over patients."
_MACRO_RATES = ("sensitivity", "specificity")


def flow(evaluation: Evaluation) -> list[Block]:
    """Return who is in and who is not."""
    rows = []
    for finding in every(evaluation.findings):
        n, seen = counts(finding.scores), finding.scores.flow
        numbers = [n["evaluated"], n["positive"], n["negative"], n["failed"], seen["series"], seen["failed series"]]
        absent = [seen["predicted, label unknown"], seen["labelled, not predicted"]]
        rows.append([name(evaluation, finding), *map(str, [*numbers, *absent])])
    unit = "series" if evaluation.settings.unit == "series" else "patients"
    header = ["", unit, "positive", "negative", "failed", "series", "failed", "label unknown", "not predicted"]
    caption = f"{unit.capitalize()} with a prediction and a known label; then all series; then patients not counted."
    return [Table(header, rows, caption)]


def ranking(evaluation: Evaluation) -> list[Block]:
    """Return the curves, and how well each model ranks."""
    findings = list(every(evaluation.findings))
    partial = "partial AUROC, FPR ≤ 0.1"
    fixed = [f"sensitivity at specificity ≥ {s}" for s in ("0.90", "0.95", "0.99")]
    rows = [
        [
            name(evaluation, f),
            bracketed(f.metrics["AUROC"]),
            bracketed(f.metrics["AUPRC"]),
            f"{f.scores.labels.mean():.3f}",
        ]
        for f in findings
    ]
    rows += [
        [macro_name(evaluation, model), bracketed(metrics["AUROC"]), bracketed(metrics["AUPRC"]), "–"]
        for model, metrics in evaluation.macro.items()
    ]
    more = [[name(evaluation, f), *(bracketed(f.metrics[n]) for n in (partial, *fixed))] for f in findings]
    caption = (
        "Left: ROC; a ring marks the frozen operating point. Middle: precision against recall; the level line is the "
        "share of positives, what chance gives. Right: share positive against predicted probability, in bins of equal "
        "numbers of patients with Wilson's 95 % intervals; on the diagonal, probabilities mean what they say."
    )
    seen = (
        f"ROC, precision-recall and reliability curves of {listed(evaluation.models)} for {listed(evaluation.targets)}"
    )
    return [
        Picture(curves_figure(evaluation.findings, evaluation.targets), caption, seen),
        Table(
            ["", "AUROC", "AUPRC", "share positive"],
            rows,
            f"{OVER_PATIENTS} AUROC: DeLong. AUPRC (average precision): stratified bootstrap.",
            list(range(len(findings), len(rows))),
        ),
        Table(
            ["", partial, *fixed],
            more,
            "Partial AUROC on McClish's scale, .5 is chance. These thresholds are chosen on the patients shown, so the "
            "sensitivities are optimistic; the frozen operating point is below.",
        ),
        *_failed(evaluation),
    ]


def _failed(evaluation: Evaluation) -> list[Block]:
    key = "AUROC, failed scans ranked worst"
    found = [
        f"{name(evaluation, f)} {bracketed(f.metrics[key])}" for f in every(evaluation.findings) if key in f.metrics
    ]
    return [Text(f"AUROC when failed scans are ranked worst: {'; '.join(found)}.", "note")] if found else []


def decisions(evaluation: Evaluation) -> list[Block]:
    """Return the operating points, and what they give."""
    findings = list(every(evaluation.findings))
    decided = [f for f in findings if f.scores.decided]
    if not decided:
        return [Text(f"Sensitivity, specificity, PPV, NPV and F1 are n/a: {NO_THRESHOLD}.", "note")]
    rows = [
        [
            name(evaluation, f),
            *(counted(f, n) for n in ("sensitivity", "specificity", "PPV", "NPV")),
            bracketed(f.metrics["F1"]),
        ]
        for f in decided
    ]
    for model, metrics in evaluation.macro.items():
        if "sensitivity" in metrics:
            rates = [bracketed(metrics[rate]) for rate in _MACRO_RATES]
            rows.append([macro_name(evaluation, model), *rates, "–", "–", bracketed(metrics["F1"])])
    predictive = [
        [
            name(evaluation, f),
            percent(prevalence),
            *(bracketed(f.metrics[f"{v} at prevalence {percent(prevalence)}"]) for v in ("PPV", "NPV")),
        ]
        for f in decided
        for prevalence in evaluation.settings.prevalences
    ]
    kind = {"wilson": "Wilson", "clopper-pearson": "Clopper and Pearson"}[evaluation.settings.proportions]
    left_out = [name(evaluation, f) for f in findings if not f.scores.decided]
    return [
        Text("A score at or above the threshold is positive. Thresholds were fixed without the patients judged here."),
        Table(
            ["", "threshold", "chosen by", "sensitivity there", "specificity there"],
            [_point(evaluation, f) for f in decided],
        ),
        Table(
            ["", "sensitivity", "specificity", "PPV here", "NPV here", "F1"],
            rows,
            f"{OVER_PATIENTS} {kind} for proportions, stratified bootstrap for F1 and means. PPV and NPV here hold for "
            "this share of positives only.",
            list(range(len(decided), len(rows))),
        ),
        *_abstention(evaluation, decided),
        Table(
            ["", "prevalence", "PPV", "NPV"],
            predictive,
            "By Bayes' rule from sensitivity and specificity, at stated prevalences; stratified bootstrap.",
        ),
        *([Text(f"{listed(left_out)}: n/a, {NO_THRESHOLD}.", "note")] if left_out else []),
    ]


def _abstention(evaluation: Evaluation, findings: list[Finding]) -> list[Block]:
    """Return the table of models that may abstain: how often they do, and how good their calls are otherwise."""
    rows = []
    for f in findings:
        if f.scores.bands is not None:
            facts = f.to_dict()["abstention"]
            bands = ", ".join(f"{low:.4g} to {high:.4g}" for low, high in facts["bands"])
            uncertain = f"{facts['uncertain']}/{len(f.scores.labels)} = {bracketed(f.metrics[UNCERTAIN])}"
            rows.append([name(evaluation, f), bands, uncertain, *(counted(f, n) for n in DECIDED)])
    caption = (
        f"{OVER_PATIENTS} From the lower end of its band on, and below the upper, a model calls a case uncertain. The "
        "last three columns are of decided cases only, which are the easier ones: they do not compare with the table "
        "above, where the threshold alone decides every case. A failed scan is a wrong decision in both."
    )
    return [Table(["", "band", "uncertain", *DECIDED], rows, caption)] if rows else []


def _point(evaluation: Evaluation, finding: Finding) -> list[str]:
    """Return a row: threshold, rule, and what it reached on validation."""
    point = finding.operating_point
    if point is not None:
        rule = {
            "sensitivity": f"validation: sensitivity ≥ {point.level:g}",
            "specificity": f"validation: specificity ≥ {point.level:g}",
            "youden": "validation: Youden's index",
        }[point.rule]
        shares = [f"{point.true_positives}/{point.positives}", f"{point.true_negatives}/{point.negatives}"]
        return [name(evaluation, finding), f"{point.threshold:.4g}", rule, *shares]
    if finding.scores.thresholds:
        thresholds = ", ".join(f"{t:.4g}" for t in finding.scores.thresholds)
        return [name(evaluation, finding), thresholds, "frozen with the model", "see its card", "see its card"]
    return [name(evaluation, finding), "–", "the model's own rule, not of the probability", "–", "–"]


def calibration(evaluation: Evaluation) -> list[Block]:
    """Return whether probabilities mean what they say, before and after temperature scaling."""
    rows, scaled = [], []
    for f in every(evaluation.findings):
        names = ("Brier score", "ECE", "calibration slope", "calibration intercept")
        rows.append([name(evaluation, f), *(bracketed(f.metrics[n]) for n in names)])
        if "ECE" in f.calibrated:
            values = [f"{f.calibrated[n]:.3f}" for n in ("temperature", "ECE", "Brier score")]
            scaled.append([name(evaluation, f), *values])
    caption = (
        f"{OVER_PATIENTS} ECE: {evaluation.settings.bins} bins of equal numbers of patients; biased upwards in small "
        "samples, so without an interval. Slope 1 and intercept 0 are perfect; a slope below 1 is overconfident. "
        "Probabilities as predicted, not scaled."
    )
    blocks: list[Block] = [Table(["", "Brier score", "ECE", "slope", "intercept"], rows, caption)]
    if scaled:
        after = "Temperature scaling, fitted on validation patients; it leaves every rank as it is."
        blocks.append(Table(["", "temperature", "ECE after", "Brier score after"], scaled, after))
    return blocks


def subgroups(evaluation: Evaluation) -> list[Block]:
    """Return a table for each column of --by."""
    blocks: list[Block] = []
    alone = len(evaluation.models) * len(evaluation.targets) == 1
    for column in dict.fromkeys(group.column for group in evaluation.subgroups):
        rows = []
        for g in evaluation.subgroups:
            if g.column == column:
                rates = [bracketed(i) for i in (g.auroc, g.sensitivity, g.specificity)]
                who = [] if alone else [label(evaluation, g.model, g.target)]
                rows.append([g.value, *who, f"{g.positive}/{g.patients}", *rates])
        header = [column, *([] if alone else [""]), "positive", "AUROC", "sensitivity", "specificity"]
        blocks.append(Table(header, rows))
    if blocks:
        warning = "Many subgroups, few patients in each: differences between them are for looking, not for claims."
        blocks.append(Text(warning, "note"))
    return blocks


def by_series(evaluation: Evaluation) -> list[Block]:
    """Return what counts each series by itself."""
    rows = []
    for f in every(evaluation.by_series):
        metrics = [bracketed(f.metrics[n]) for n in ("AUROC", "AUPRC", "sensitivity", "specificity")]
        number = f"{len(f.scores.labels)} of {len(set(f.scores.patients))}"
        rows.append([name(evaluation, f), number, *metrics])
    if not rows:
        return []
    said = (
        "Each series counted by itself, as some publications do. Series of one patient are not independent: intervals "
        "here draw patients, not series. The figures above, one decision per patient, are the primary ones."
    )
    header = ["", "series of patients", "AUROC", "AUPRC", "sensitivity", "specificity"]
    return [Text(said), Table(header, rows, OVER_PATIENTS)]


def seeds(evaluation: Evaluation) -> list[Block]:
    """Return each seed's own AUROC beside that of their mean probability."""
    rows = []
    for f in every(evaluation.findings):
        if f.seeds:
            values = ", ".join(f"{seed}: {value:.3f}" for seed, value in f.seeds.items())
            mean = sum(f.seeds.values()) / len(f.seeds)
            rows.append([name(evaluation, f), f"{mean:.3f}", bracketed(f.metrics["AUROC"]), values])
    if not rows:
        return []
    said = "Seeds are averaged within each patient first, so the figures above are of the seeds' mean probability."
    return [Text(said), Table(["AUROC", "mean of the seeds", "of their mean", "each seed alone"], rows)]
