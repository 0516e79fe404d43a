"""The report of an evaluation: one HTML page, results.json, patients.csv."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fmct.artefacts import write_json
from fmct.errors import ArtefactError
from fmct.evaluate import evaluation_tables as tables
from fmct.evaluate.attention_overlays import Look, attention_figure
from fmct.evaluate.evaluation import Evaluation, patient_rows
from fmct.evaluate.evaluation_cells import bracketed, label, listed, p_value, signed_difference
from fmct.evaluate.evaluation_tables import OVER_PATIENTS
from fmct.evaluate.figures_evaluation import froc_figure
from fmct.evaluate.model_contrasts import MACRO
from fmct.evaluate.report import Block, Facts, Figures, Picture, Section, Table, Text, write_report
from fmct.evaluate.worst_cases import Scans, case_figure, worst_cases
from fmct.metrics.froc import RATES
from fmct.table_files import write_rows

FORMAT = ("fmct-evaluation", "1.0")
RESULTS, PATIENTS, PAGE = "results.json", "patients.csv", "report.html"
_DIGITS = {"HD95, mm": 1, "volume error, ml": 2}
_RATE_NAMES = ("1/8", "1/4", "1/2", "1", "2", "4", "8")


def write_evaluation(
    evaluation: Evaluation,
    folder: str | Path,
    *,
    title: str = "Evaluation",
    scans: Scans | None = None,
    looks: Mapping[str, Sequence[Look]] | None = None,
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
    subtitle = f"{listed(evaluation.models)} on {listed(evaluation.targets)}"
    return write_report(folder / PAGE, title, sections(evaluation, scans, looks or {}), subtitle=subtitle)


def sections(
    evaluation: Evaluation, scans: Scans | None = None, looks: Mapping[str, Sequence[Look]] | None = None
) -> list[Section]:
    """Return the page's sections; those that have nothing to say are left out. looks: attention to show, by model."""
    plan: list[tuple[str, Callable[[Evaluation], list[Block]]]] = [
        ("In short", _short),
        ("Who was counted", tables.flow),
        ("Ranking", tables.ranking),
        ("Decisions", tables.decisions),
        ("Calibration", tables.calibration),
        ("Model against model", _comparisons),
        ("Masks", _masks),
        ("Lesions", _lesions),
        ("Subgroups", tables.subgroups),
        ("Series by series", tables.by_series),
        ("Seed by seed", tables.seeds),
        ("Worst cases", lambda evaluation: _worst(evaluation, scans)),
        ("Where it looked", lambda _: _attention(looks or {}, scans)),
        ("How it was measured", _method),
    ]
    made = [Section(title, make(evaluation)) for title, make in plan]
    return [section for section in made if section.blocks]


def _short(evaluation: Evaluation) -> list[Block]:
    model = next(name for name, found in evaluation.findings.items() if found)
    findings = list(evaluation.findings[model].values())
    several = model in evaluation.macro
    metrics = evaluation.macro[model] if several else findings[0].metrics
    what = f"mean of {len(findings)} findings" if several else findings[0].target
    patients = {patient for finding in findings for patient in finding.scores.patients}
    figures = [(str(len(patients)), "patients")]
    for name in ("AUROC", "AUPRC", "sensitivity", "specificity"):
        if name in metrics and metrics[name].estimate is not None:
            figures.append((f"{metrics[name].estimate:.3f}", name))
    masks = evaluation.segmentation.get(model)
    if masks is not None and masks.summary["Dice"].estimate is not None:
        figures.append((f"{masks.summary['Dice'].estimate:.3f}", "Dice, patients with a lesion"))
    auroc = metrics["AUROC"]
    said = f"{model}, {what}: AUROC {bracketed(auroc)}"
    said += "." if auroc.low is None else ", 95 % interval over patients."
    others = [name for name in evaluation.models if name != model]
    if others:
        said += f" Beside it: {listed(others)}."
    return [Text(said, "lead"), Figures(figures), *(Text(note, "note") for note in evaluation.notes)]


def _comparisons(evaluation: Evaluation) -> list[Block]:
    if not evaluation.comparisons:
        return []
    blocks: list[Block] = [
        Text(
            f"Contrasts: {'; '.join(map(str, evaluation.contrasts))}. Paired by patient, on those that both models "
            "scored. Holm's correction is over all contrasts and findings of one metric."
        )
    ]
    last = f"First minus second. {OVER_PATIENTS} For the Brier score less is better."
    for contrast in evaluation.contrasts:
        found = [c for c in evaluation.comparisons if c.contrast == contrast]
        rows = [
            [c.target, c.metric, signed_difference(c.difference), c.test, p_value(c.p), p_value(c.p_holm)]
            for c in found
        ]
        strong = [k for k, c in enumerate(found) if c.target == MACRO]
        blocks.append(Table([str(contrast), "metric", "difference", "test", "p", "p, Holm"], rows, last, strong))
    masks = [
        [str(r.contrast), metric, str(r.difference.n), signed_difference(r.difference), p_value(r.p), p_value(r.p_holm)]
        for metric, results in evaluation.mask_contrasts.items()
        for r in results
    ]
    if masks:
        caption = f"Masks, patients with a lesion, sign flips. First minus second. {OVER_PATIENTS}"
        blocks.append(Table(["masks", "metric", "patients", "difference", "p", "p, Holm"], masks, caption))
    return blocks


def _masks(evaluation: Evaluation) -> list[Block]:
    rows, notes = [], []
    several = len(evaluation.segmentation) > 1
    for model, result in evaluation.segmentation.items():
        before = f"{model}: " if several else ""
        for name, interval in result.summary.items():
            digits, spread = _DIGITS.get(name, 3), result.spread.get(name)
            tail = ["–"] * 3
            if spread:
                sd, median, lower, upper = (f"{value:.{digits}f}" for value in spread)
                tail = [sd, median, f"{lower} to {upper}"]
            rows.append([before + name, str(interval.n), bracketed(interval, digits), *tail])
        empty = result.false_ml
        rows.append([f"{before}ml predicted without a lesion", str(empty.n), bracketed(empty, 2), "–", "–", "–"])
        notes += [Text(before + note, "note") for note in result.notes]
    if not rows:
        return []
    tolerance = next(iter(evaluation.segmentation.values())).tolerance_mm
    caption = (
        f"Patients with a lesion; several series of one are averaged first. {OVER_PATIENTS} Surface Dice at "
        f"{tolerance:g} mm. HD95: patients with a prediction only. Nothing predicted of nothing is undefined, not 1."
    )
    return [Table(["", "patients", "mean", "SD", "median", "quartiles"], rows, caption), *notes]


def _lesions(evaluation: Evaluation) -> list[Block]:
    curves = {model: result.froc for model, result in evaluation.segmentation.items() if result.froc is not None}
    if not curves:
        return []
    rates = [
        [text, *(bracketed(curve.sensitivity_at[rate]) for curve in curves.values())]
        for text, rate in zip(_RATE_NAMES, RATES, strict=True)
    ]
    rates.append(["mean of the seven", *(bracketed(curve.mean) for curve in curves.values())])
    rows = [
        ["lesions", *(f"{curve.lesions} in {curve.subjects} patients" for curve in curves.values())],
        ["lesions found", *(bracketed(curve.sensitivity_all) for curve in curves.values())],
        ["false positives per subject", *(bracketed(curve.per_subject) for curve in curves.values())],
        ["false positives per subject without a lesion", *(bracketed(curve.per_negative) for curve in curves.values())],
        ["precision", *(bracketed(curve.precision) for curve in curves.values())],
    ]
    caption = (
        "FROC over all subjects, those without a lesion too: the share of lesions found by candidates of at least a "
        "score, against the candidates of that score that hit nothing. A dot is the highest sensitivity with at most "
        "so many false positives, its bar the 95 % interval over patients."
    )
    return [
        Text(str(next(iter(evaluation.segmentation.values())).rule)),
        Picture(froc_figure(curves), caption, f"FROC curves of {listed(list(curves))}"),
        Table(["sensitivity at FP per subject", *curves], rates, OVER_PATIENTS, [len(rates) - 1]),
        Table(["every candidate counted", *curves], rows, OVER_PATIENTS),
    ]


def _worst(evaluation: Evaluation, scans: Scans | None) -> list[Block]:
    cases = worst_cases(evaluation)
    if not cases:
        return []
    rows = [[case.patient, case.series, label(evaluation, case.model, case.target), case.why] for case in cases]
    caption = (
        "The largest errors of each model; of its masks the lowest Dice, and the largest where there is no lesion."
    )
    table = Table(["patient", "series", "", "what"], rows, caption)
    if scans is None:
        return [table]
    picture, notes = case_figure(cases, scans)
    remarks = [Text(note, "note") for note in notes]
    if not picture:
        return [table, *remarks]
    shown = "Orange: reference. Blue: prediction. Planes through the reference, else the prediction, else the middle."
    return [Picture(picture, shown, "slices of the worst cases"), table, *remarks]


def _attention(looks: Mapping[str, Sequence[Look]], scans: Scans | None) -> list[Block]:
    blocks: list[Block] = []
    for model, shown in looks.items():
        if not shown:
            continue
        if scans is None:
            blocks.append(Text(f"{model}: came with attention maps; --scans names what to draw them on.", "note"))
            continue
        picture, notes = attention_figure(shown, scans)
        if picture:
            caption = (
                f"{model}: attention (times the probability of its slab) over the scan, planes through its peak. "
                "Light blue outlines the reference. Positives that the model is surest of, then its largest errors. "
                "At the right the probability of each slab, and the axial plane's height."
            )
            blocks.append(Picture(picture, caption, f"attention of {model} over scans"))
        blocks += [Text(note, "note") for note in notes]
    return blocks


def _method(evaluation: Evaluation) -> list[Block]:
    s = evaluation.settings
    facts = {
        "unit": f"the {s.unit}; every interval and test draws or pairs patients",
        "seeds and folds": "averaged within a series first",
        "series of a patient": f"{'highest' if s.merge == 'max' else 'mean'} probability",
        "rows scored": f"split {evaluation.split}" if evaluation.split else "all but training and validation",
        "failed scans": "a wrong decision; left out of ranks and calibration",
        "AUROC": "DeLong, logit scale; patients with several series by Obuchowski; means over findings jointly",
        "bootstrap": f"{s.resamples:,} draws of patients, positives and negatives apart; BCa, percentile where BCa is "
        f"undefined; seed {s.seed}",
        "proportions": {"wilson": "Wilson", "clopper-pearson": "Clopper and Pearson"}[s.proportions],
        "tests": "paired DeLong; McNemar, exact; sign flips, exact up to 14 patients; Holm",
        "fewer than 6 patients": "values, no interval and no test",
        "unknown labels": "left out, never negative",
    }
    return [Facts(facts)]
