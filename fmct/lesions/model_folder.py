"""From a run to a folder that predicts: detector, student, thresholds and rules, with golden numbers and checksums."""

import json
from pathlib import Path
from typing import Any

import torch

from fmct.artefacts import read_json, sha256_of, stamped, write_json
from fmct.config import plain
from fmct.errors import ArtefactError, ConfigError
from fmct.lesions.detector import DetectorRecord, LesionDetector
from fmct.lesions.pipeline import Pipeline
from fmct.models.adaptation import EncoderHolder
from fmct.publish import layout
from fmct.publish.card import header_licence
from fmct.publish.facts import versions
from fmct.publish.folder import write_description
from fmct.publish.golden import FORMAT as GOLDEN_FORMAT
from fmct.publish.golden import INPUT, TOLERANCE, golden_input
from fmct.publish.weights import check_values, load_into, read_weights, write_weights
from fmct.tasks.lesion_proposal import load_trained
from fmct.train import checkpoint

RUN_FORMAT, FORMAT = ("fmct-lesion-run", "1.0"), ("fmct-lesion-model", "1.0")
PREPARATION_FORMAT = ("fmct-lesion-preparation", "1.0")
RUN_FILE = "lesions.json"
PARTS = ("detector", "student")
_SIZE = (16, 20, 12)


def describe(pipeline: Pipeline) -> None:
    """Write RUN/lesions.json: what `fmct export` builds the detector from."""
    config = pipeline.config
    facts = {"seed": config.seed, "title": config.title, "series": len(pipeline.subjects)}
    facts |= {"patients": len({subject.patient for subject in pipeline.subjects}), "train_split": config.train_split}
    payload = {"record": plain(DetectorRecord.of(config, pipeline.trained_spacing())), "facts": facts}
    write_json(pipeline.folder / RUN_FILE, *RUN_FORMAT, payload)


def is_lesion_run(folder: Path) -> bool:
    """Return whether a folder is a run of a lesion detector."""
    return (folder / RUN_FILE).is_file()


def is_lesion_model(folder: Path) -> bool:
    """Return whether a folder holds an exported lesion detector."""
    try:
        content = json.loads((folder / layout.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format", {}).get("name") == FORMAT[0]


def export_detector(run: str | Path, folder: str | Path, *, license_id: str = "other", overwrite: bool = False) -> Path:
    """Write the model folder of a run and return it; it appears whole or not at all.

    Raises ArtefactError when a phase of the run has no checkpoint, or the folder is another's.
    """
    run, folder = Path(run), Path(folder)
    content = read_json(run / RUN_FILE, *RUN_FORMAT)
    record = DetectorRecord.from_tree(content["record"], str(run / RUN_FILE))
    detector, student = record.networks()
    facts = {**content["facts"], "run": run.name, "versions": versions()}
    for name, network in zip(PARTS, (detector, student), strict=True):
        found = checkpoint.newest(run / name / "checkpoints")
        if found is None:
            raise ArtefactError(f"{run / name}: no checkpoint that verifies. Run `fmct finetune` to its end first.")
        load_trained(network, read_weights(found / checkpoint.PARAMETERS))
        facts[f"{name}_weights"] = sha256_of(found / checkpoint.PARAMETERS)
    model = LesionDetector(record, detector, student, facts=facts)
    tensors = {f"{name}.{key}": value for name in PARTS for key, value in getattr(model, name).state_dict().items()}
    check_values(tensors, where=str(run))
    description = {"record": plain(record), "training": facts}
    layout.refuse_to_overwrite(folder, replace=overwrite)
    with layout.committed(folder, replace=overwrite) as temporary:
        write_weights(temporary / layout.WEIGHTS, tensors)
        write_description(temporary / layout.CONFIG, stamped(*FORMAT, description))
        preparation = {"lesion_sign": record.lesion_sign, **plain(record.prepare)}
        write_description(temporary / layout.PREPROCESS, stamped(*PREPARATION_FORMAT, preparation))
        write_description(temporary / layout.GOLDEN, stamped(*GOLDEN_FORMAT, golden_numbers(model)))
        (temporary / layout.CARD).write_text(card(model, folder.name, license_id), encoding="utf-8")
        layout.write_sums(temporary)
    return folder


def load_detector(folder: str | Path, *, device: torch.device | str | None = None) -> LesionDetector:
    """Return an exported detector, every file checked. Raises ArtefactError, WeightsError."""
    folder = Path(folder)
    layout.verify(folder)
    content = read_json(folder / layout.CONFIG, *FORMAT)
    preparation = read_json(folder / layout.PREPROCESS, *PREPARATION_FORMAT)
    record = DetectorRecord.from_tree(content["record"], str(folder / layout.CONFIG))
    if preparation != {"lesion_sign": record.lesion_sign, **plain(record.prepare)}:
        raise ArtefactError(f"{folder}: preprocess.json and config.json contradict each other. Export the run again.")
    tensors, networks = read_weights(folder / layout.WEIGHTS), record.networks()
    for name, network in zip(PARTS, networks, strict=True):
        own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
        load_into(network, own, where=f"{folder}, {name}")
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return LesionDetector(
        record, *networks, facts=content["training"], fingerprint=layout.fingerprint(folder), device=chosen
    )


def selftest(model: LesionDetector, folder: Path) -> None:
    """Raise ArtefactError unless both networks give here what they gave when they were exported (relative 1e-4)."""
    expected = read_json(folder / layout.GOLDEN, *GOLDEN_FORMAT)
    found = golden_numbers(model)
    for name in ("voxels", "patch"):
        for before, now in zip(expected[name], found[name], strict=True):
            if abs(before - now) > TOLERANCE * max(1.0, abs(before)):
                raise ArtefactError(
                    f"{folder}: {name} logits are {now:.6g} here and were {before:.6g} at export. This installation "
                    "computes something else; compare versions with the card."
                )


@torch.no_grad()
def golden_numbers(model: LesionDetector) -> dict[str, Any]:
    """Return what the networks make of a closed-form input of two channels."""
    x = golden_input(2, _SIZE).to(model.device)
    voxels: Any = _run(model.detector, x).voxels
    patch: Any = _run(model.student, x).patch
    places = [float(voxels[0, 0, z, y, 5]) for z, y in ((0, 0), (7, 9), (15, 19))]
    return {
        "input": INPUT,
        "size": list(_SIZE),
        "voxels": [*places, float(voxels.mean()), float(voxels.std())],
        "patch": patch[0].tolist(),
    }


def card(model: LesionDetector, name: str, license_id: str) -> str:
    """Return README.md: the hub's header, what it is, how it is used, what it was trained on, limits."""
    record, facts = model.record, model.facts
    parameters = sum(p.numel() for part in (model.detector, model.student) for p in part.parameters())
    tags = ["medical-imaging", record.prepare.modality.lower(), "3d", "lesion-detection"]
    header = {**header_licence(license_id), "library_name": "fmct", "pipeline_tag": "image-segmentation", "tags": tags}
    import yaml

    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if isinstance(value, (str, int, float)))
    return f"""---
{yaml.safe_dump(header, sort_keys=False)}---

# {name}

Finds {record.target} in {record.prepare.modality}, lesions **{record.lesion_sign}** on the image, in three
steps: a detector of voxels, a student that judges each candidate, and a clean-up in millimetres.
{parameters:,} parameters, fp32.

**Research use only. Not a medical device.**

    fmct predict {name} SCANS OUT --brain-masks MASKS
    fmct evaluate OUT REFERENCES REPORT

## Input

`preprocess.json` holds all of it: normalisation {record.prepare.normalisation.kind}, brain mask {record.prepare.brain},
working grid {record.prepare.spacing_mm or "of the series"}. Another modality is refused; the sign is the training's.

## Training

| | |
|---|---|
{rows}

## Limits

Another scanner, sequence, echo time, resolution or population may give numbers that mean little: measure first.
"""


def _run(network: EncoderHolder, x: torch.Tensor) -> Any:
    return network(x, torch.ones(1, 3, device=x.device))


def check_options(*, step: int | None, with_heads: bool, student: bool) -> None:
    """Raise ConfigError for options of `fmct export` that a lesion detector does not have."""
    if with_heads or student or step is not None:
        raise ConfigError(
            "a run of a lesion detector holds several networks, and their newest checkpoints are exported. Leave out "
            "--step, --with-heads and --student."
        )
