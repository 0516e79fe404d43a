"""The card of a downstream model: README.md with the hub's YAML header, from its facts and nothing else."""

from collections.abc import Mapping
from typing import Any

import yaml

from fmct.publish.card import final_section, header_licence, input_section, training_section
from fmct.publish.decision import Decision
from fmct.publish.load_model import PublishedModel

_RULES = {
    "cls": "the probability of the series",
    "volume": "the volume of the counted components in mm³",
    "fusion": "a logistic regression on logit, log(1 + volume) and largest voxel probability",
}


def model_card(model: PublishedModel, *, name: str, license_id: str) -> str:
    """Return README.md: YAML header, use, input, task, decision, training facts, intended use and limits."""
    sections = [
        f"---\n{yaml.safe_dump(_header(model, license_id), sort_keys=False)}---\n",
        f"# {name}\n",
        _summary(model),
        _use(name),
        input_section(model.preprocessing, "`fmct predict` does all of it"),
        _decision(model.decision, model.targets),
        _pretrained(model.record.pretrained),
        training_section(model.facts),
        final_section(model.facts),
        _INTENDED,
    ]
    return "\n".join(section for section in sections if section)


def _header(model: PublishedModel, license_id: str) -> dict[str, Any]:
    return {
        **header_licence(license_id),
        "library_name": "fmct",
        "pipeline_tag": "image-segmentation" if model.segments else "image-classification",
        "tags": ["medical-imaging", model.preprocessing.modality.lower(), "3d", model.record.kind],
    }


def _summary(model: PublishedModel) -> str:
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    return (
        f"A downstream model of kind {model.record.kind} for one {model.preprocessing.modality} series: "
        f"{', '.join(model.targets)}; {parameters:,} parameters, fp32.\n\n"
        "**Research use only. Not a medical device.**\n"
    )


def _use(name: str) -> str:
    return f"""## Use

```
fmct predict {name} SCANS OUT
```

```python
from fmct.publish.load_model import load_model

model = load_model("{name}")   # this folder, or its hub id
model.selftest()               # the files, and that logits come out here as they did at export
output = model(x)              # x (B, C, D, H, W) windows; .classification (B, T), .segmentation (B, T, D, H, W)
```
"""


def _decision(decision: Decision | None, targets: tuple[str, ...]) -> str:
    if decision is None:
        return "## Decision\n\nNo operating point was frozen: the model gives probabilities and makes no decision.\n"
    rows = "\n".join(
        f"| {target} | {decision.thresholds[target]:.6g} |" if target in decision.thresholds else f"| {target} | none |"
        for target in targets
    )
    counts = ", ".join(f"{key} {value}" for key, value in decision.validation.items()) or "not stated"
    return (
        f"## Decision\n\nRule `{decision.rule}`: {_RULES[decision.rule]}; a score equal to the threshold is positive. "
        f"Chosen on validation patients and frozen ({counts}).\n\n| target | threshold |\n|---|---|\n{rows}\n\n"
        f"{_calibration(decision)}"
        f"Voxels belong to a mask from probability {decision.mask_probability:g} on; a component counts from mean "
        f"probability {decision.component_probability:g} and {decision.min_volume_mm3:g} mm³ on.\n"
    )


def _calibration(decision: Decision) -> str:
    """Return what is said of temperatures and bands of abstention; "" where there are none."""
    warm = [f"{target}: logits are divided by {value:.4g}" for target, value in decision.temperature.items()]
    bands = [f"{target}: uncertain from {low:.4g} to {high:.4g}" for target, (low, high) in decision.abstain.items()]
    return f"Calibrated on validation; {'; '.join([*warm, *bands])}.\n\n" if warm or bands else ""


def _pretrained(facts: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if isinstance(value, (str, int, float)))
    notes = "".join(f"\n**{note}**\n" for note in facts.get("overlap", ()))
    return f"## Pretrained encoder\n\n| | |\n|---|---|\n{rows}\n{notes}" if rows else notes


_INTENDED = """## Intended use and limits

Research on series like those it was trained and validated on. Not for diagnosis, triage or any decision about a
patient: it is **not a medical device**.
Another modality is refused. Other scanners, kernels, slice thicknesses, contrast phases, body regions or patient groups
than the training set holds may give numbers that mean little: measure with `fmct evaluate` on your own data first.
"""
