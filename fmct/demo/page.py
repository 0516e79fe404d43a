"""The demo's page: what came in, what was trained, what the frozen features are worth."""

from pathlib import Path
from typing import Any

from fmct.data.mask_files import match_masks
from fmct.demo.results import Results, read_rows
from fmct.evaluate.feature_maps import ColourBasis, FeatureMap, feature_map
from fmct.evaluate.figures import health_figure, loss_figure, probe_figure
from fmct.evaluate.figures_scan import ScanPicture, pca_figure
from fmct.evaluate.report import Facts, Figures, Picture, Section, Table, Text, probe_blocks, write_report
from fmct.probes.comparison import RANDOM, random_encoder
from fmct.probes.dense import DenseCase
from fmct.probes.dense_cases import dense_cases
from fmct.publish import PublishedEncoder
from fmct.samples import corpus

_SHOWN = 2  # held-out patients whose feature maps are drawn


def write(path: Path, results: Results) -> Path:
    """Write the page and return its path."""
    sections = [_summary(results), _corpus(results), _views(results), _training(results), _features(results)]
    title = "From scans to a published encoder"
    return write_report(path, title, [*sections, _probe(results)], subtitle="fmct demo on embedded real CT")


def _summary(results: Results) -> Section:
    own, random = results.probe.rows[0], _random_row(results)
    minutes = sum(results.seconds.values()) / 60
    figures = [
        (_number(own.score.estimate), "dense-probe AUROC, mean of the held-out patients"),
        (_number(random.score.estimate), "the same with random weights"),
        (f"{minutes:.1f} min", "all stages before this page"),
    ]
    lead = (
        "One command read real scans into a store, pretrained a small 3D vision transformer without labels, published "
        "it as a folder, loaded it, and asked what its frozen features know about tumours in patients it never saw."
    )
    blocks: list[Any] = [Text(lead, "lead"), Figures(figures)]
    if results.quick:
        blocks.append(
            Text("This was --quick: a few steps, to see that all parts work. The numbers mean nothing.", "note")
        )
    stages = Table(["stage", "seconds"], [[name, f"{s:.0f}"] for name, s in results.seconds.items()])
    return Section("What happened", [*blocks, stages])


def _corpus(results: Results) -> Section:
    ingested = results.ingested
    facts = {
        "series taken": f"{ingested.taken} of {ingested.patients} patients, {ingested.bytes / 1e6:.1f} MB",
        "formats": "DICOM (JPEG 2000) and NIfTI",
        "held out": f"{len(corpus.held_out_patients())} patients, from pretraining and from the probe's fit",
    }
    refused = Table(
        ["code", "files"],
        [[code, str(count)] for code, count in ingested.refused.items()],
        "What was not taken, by reason; ledger.jsonl has each file with its numbers. Here: the tumour masks, which lie "
        "beside the scans and hold no plausible HU.",
    )
    return Section("Scans", [Facts(facts), refused])


def _views(results: Results) -> Section:
    picture = Picture(
        results.sheet.read_bytes(),
        "Views as training sees them: where each lies in its scan, its windows, masked patches, and HU.",
        "Rows of CT slices with boxes, rendered crops and masks",
    )
    return Section("Views", [picture])


def _training(results: Results) -> Section:
    metrics, timing = read_rows(results.run / "metrics.jsonl"), read_rows(results.run / "timing.jsonl")
    # The first updates hold start-up costs; the median is of the others.
    speeds = sorted(row["volumes_per_second"] for row in timing[2:] or timing)
    facts = {
        "updates": str(metrics[-1]["step"]),
        "volumes per second": f"{speeds[len(speeds) // 2]:.1f} (median)",
        "alarms": _alarms(results.run / "events.jsonl"),
    }
    return Section(
        "Training",
        [
            Facts(facts),
            Picture(loss_figure(metrics), "The loss and its terms, per update.", "Loss curves"),
            Picture(health_figure(metrics, timing), "Signs of collapse, gradient and speed.", "Health curves"),
        ],
    )


def _alarms(path: Path) -> str:
    """Return the alarms of a run, each with the update that first raised it."""
    raised: dict[str, int] = {}
    for row in read_rows(path) if path.is_file() else []:
        if row.get("event") == "alarm":
            raised.setdefault(row["alarm"], row["step"])
    return "; ".join(f"update {step}: {text}" for text, step in raised.items()) or "none"


def _features(results: Results) -> Section:
    cases = _shown_cases(results)
    random = random_encoder(results.encoder, 0)
    own_maps = [_map(results.encoder, case) for case in cases]
    random_maps = [_map(random, case) for case in cases]
    own, other = ColourBasis.fit(own_maps), ColourBasis.fit(random_maps)
    spacing = results.encoder.preprocessing.input.spacing_mm
    assert spacing is not None
    pictures = [
        ScanPicture(
            f"held-out patient {number}",
            case.hu,
            spacing,
            {"pretrained": (mine, own), "random": (theirs, other)},
            mask=case.mask,
        )
        for number, (case, mine, theirs) in enumerate(zip(cases, own_maps, random_maps, strict=True), start=1)
    ]
    caption = (
        "The first three principal components of the patch features as red, green and blue, over the CT; one basis for "
        "both patients. The tumour is outlined."
    )
    return Section("What the features see", [Picture(pca_figure(pictures), caption, "CT slices and feature colours")])


def _probe(results: Results) -> Section:
    text = (
        "A linear classifier on frozen patch tokens tells tumour from other soft tissue (tokens of −60 to 150 HU; more "
        "than 90 % or less than 10 % tumour), in windows wholly inside the scan. It is fitted on the other patients "
        "and scored on the held-out ones, each by its own AUROC."
    )
    figure = Picture(
        probe_figure(results.probe), "Scores, and each patient's gain over random weights.", "Probe scores"
    )
    # Folds and token counts by patient are in probe-dense.json; a page is for reading.
    facts = {
        name.replace("_", " "): str(value)
        for name, value in results.probe.facts.items()
        if name not in ("folds", "tokens")
    }
    return Section("What the features are worth", [Text(text), *probe_blocks(results.probe), figure, Facts(facts)])


def _shown_cases(results: Results) -> list[DenseCase]:
    held_out = set(corpus.held_out_patients())
    entries = [entry for entry in results.store.entries if entry.patient in held_out]
    matched = match_masks(results.store, corpus.MASKS, entries=entries)
    shown = [entry for entry in entries if entry.id in matched][:_SHOWN]
    return list(dense_cases(results.store, shown, matched, results.encoder.preprocessing))


def _map(encoder: PublishedEncoder, case: DenseCase) -> FeatureMap:
    preprocessing = encoder.preprocessing
    return feature_map(
        lambda crops: encoder(crops).patches,
        case.hu,
        windows=preprocessing.windows,
        size=preprocessing.input.size_voxels,
        patch=encoder.model.patch_size,
    )


def _random_row(results: Results) -> Any:
    return next(row for row in results.probe.rows if row.name.startswith(RANDOM))


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
