"""The model card: README.md with the hub's YAML header, written from the training facts and nothing else."""

from collections.abc import Mapping
from typing import Any

import yaml

from fmct.models.encoder import EncoderConfig, VisionTransformer
from fmct.preprocess import Preprocessing

_UNNAMED = "other"
_HEALTH = ("loss", "entropy", "usage", "rank_me", "std", "cosine", "kl", "ema", "grad_norm")


def card(
    model: VisionTransformer,
    config: EncoderConfig,
    preprocessing: Preprocessing,
    facts: Mapping[str, Any],
    *,
    name: str,
    license_id: str = _UNNAMED,
) -> str:
    """Return README.md: YAML header, use, preprocessing, training facts, intended use and limits."""
    sections = [
        f"---\n{yaml.safe_dump(_header(config, preprocessing, license_id), sort_keys=False)}---\n",
        f"# {name}\n",
        _summary(model, config, preprocessing, facts),
        _use(name),
        input_section(preprocessing, "`encoder.preprocess` does all of it"),
        training_section(facts),
        final_section(facts),
        _INTENDED,
    ]
    return "\n".join(section for section in sections if section)


def _header(config: EncoderConfig, preprocessing: Preprocessing, license_id: str) -> dict[str, Any]:
    return {
        **header_licence(license_id),
        "library_name": "fmct",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["medical-imaging", preprocessing.modality.lower(), "3d", "vit", config.size, "self-supervised"],
    }


def header_licence(license_id: str) -> dict[str, Any]:
    """Return the licence part of the hub's YAML header."""
    unnamed = {"license_name": "not-named-by-the-owner"} if license_id == _UNNAMED else {}
    return {"license": license_id, **unnamed}


def _summary(
    model: VisionTransformer, config: EncoderConfig, preprocessing: Preprocessing, facts: Mapping[str, Any]
) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    patch = " × ".join(str(side) for side in model.patch_size)
    return (
        f"A 3D vision transformer for {preprocessing.modality}: {model.num_features} wide, {model.depth} deep, patches "
        f"of {patch} voxels (z, y, x), {model.num_registers} registers, positions: {config.position}; "
        f"{parameters:,} parameters, fp32. The {facts.get('source', 'encoder')} of a self-supervised run.\n\n"
        "**Not a medical device.** For research only.\n"
    )


def _use(name: str) -> str:
    return f"""## Use

```python
import fmct

encoder = fmct.load_encoder("{name}")    # this folder, or its hub id
encoder.selftest()                       # the files, and that features come out here as they did at export
vector = encoder.embed("scan.nii.gz")    # (2E,): mean over tiles of [cls, mean patch]
x = encoder.preprocess("dicom_folder/")  # (T, C, D, H, W)
output = encoder(x)                      # .cls (T, E), .patches (T, N, E), .grid
```
"""


def input_section(preprocessing: Preprocessing, done_by: str) -> str:
    """Return the section on orientation, size, spacing and windows; done_by: who does it, for the heading."""
    spec = preprocessing.input
    spacing = "as the series gives it" if spec.spacing_mm is None else " × ".join(f"{s:g}" for s in spec.spacing_mm)
    rows = "\n".join(
        f"| {number} | {window.name or '–'} | {window.low:g} | {window.high:g} | "
        f"(v {-window.offset_and_scale[0]:+g}) / {window.offset_and_scale[1]:g} |"
        for number, window in enumerate(preprocessing.windows)
    )
    size = " × ".join(str(n) for n in spec.size_voxels)
    units = " (HU)" if preprocessing.modality == "CT" else ""
    return (
        f"## Input (preprocess.json; {done_by})\n\n"
        f"Orientation {preprocessing.orientation}, mode {spec.mode}, {size} voxels at {spacing} mm (z, y, x), "
        f"overlap {spec.overlap:g}, tiles under {spec.skip_air:g} foreground left out, pooling: {spec.pool}.\n\n"
        f"{_channels(preprocessing, rows, units)}\n"
    )


def _channels(preprocessing: Preprocessing, rows: str, units: str) -> str:
    """Return the table of the windows, or the sentence on what takes their place."""
    if preprocessing.normalisation.kind != "none":
        settings = ", ".join(f"{name} {value}" for name, value in preprocessing.normalisation.to_dict().items())
        return f"One channel, normalised for each series (`fmct.normalise`): {settings}."
    if preprocessing.percentiles is not None:
        low, high = preprocessing.percentiles
        return f"One channel: percentiles {low:g} and {high:g} of each series become −1 and 1."
    return f"| channel | window | low{units} | high{units} | value v becomes |\n|---|---|---|---|---|\n{rows}"


def training_section(facts: Mapping[str, Any]) -> str:
    """Return the section on corpus, recipe, steps, hardware and versions."""
    corpus = facts.get("corpus") or {}
    modalities = ", ".join(f"{count} {name}" for name, count in corpus.get("modality", {}).items())
    versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
    hardware = facts.get("hardware") or {}
    rows = [
        (
            "Corpus",
            f"{corpus['series']} series ({modalities}) of {corpus['patients']} patients"
            if "series" in corpus
            else None,
        ),
        ("Corpus fingerprint", corpus.get("fingerprint") or ", ".join(corpus.get("store_fingerprints", ()))),
        ("Recipe", facts.get("recipe")),
        ("Steps", f"{facts['step']} of {facts.get('steps_planned') or facts['step']}" if "step" in facts else None),
        ("Batch", facts.get("batch_size")),
        ("Objective weights", _pairs(facts.get("objective"))),
        ("Seed", facts.get("seed")),
        ("Hardware", f"{hardware['count']} × {hardware['device']}" if hardware else None),
        ("Wall time", _duration(facts.get("wall_time_s"))),
        ("Versions", versions),
        ("Code", facts.get("commit")),
        ("Run", facts.get("run")),
    ]
    table = "\n".join(f"| {label} | {value} |" for label, value in rows if value not in (None, ""))
    return (
        f"## Training\n\n| | |\n|---|---|\n{table}\n\n"
        "`config.json` holds the whole configuration of the run and the voxel hash of every series it saw, so that "
        "overlap with a test set can be checked (`fmct.publish.facts.overlap`).\n"
    )


def final_section(facts: Mapping[str, Any]) -> str:
    """Return the section on losses and health at the last step, empty where none are known."""
    final = facts.get("final") or {}
    chosen = {key: value for key, value in final.items() if any(part in key.lower() for part in _HEALTH)}
    if not chosen:
        return ""
    rows = "\n".join(f"| {key} | {value:.5g} |" for key, value in chosen.items() if isinstance(value, (int, float)))
    alarms = facts.get("alarms") or []
    text = "\n".join(f"- {alarm}" for alarm in alarms)
    return (
        f"## State at the last step\n\n| signal | value |\n|---|---|\n{rows}\n\n"
        f"{'Alarms during the run:' if alarms else 'No collapse alarm was raised.'}\n{text}\n"
    )


def _duration(seconds: float | None) -> str | None:
    if not seconds:
        return None
    return f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds:.0f} s"


def _pairs(tree: Any) -> str | None:
    if not isinstance(tree, Mapping):
        return None
    return ", ".join(f"{key} {value:g}" for key, value in tree.items() if isinstance(value, (int, float)))


_INTENDED = """## Intended use and limits

Features for research on volumes like those it was trained on: probes, retrieval, a start for fine-tuning.
Not for diagnosis, triage or any decision about a patient: it was not evaluated for that and is **not a medical
device**.
Another modality is refused. Other body regions, reconstruction kernels, slice thicknesses, contrast phases or patient
groups than the corpus holds may give features that mean little: measure with `fmct probe` on your own data first.
Features of a series may allow to recognise the series; treat them with the care that the images need.
"""
