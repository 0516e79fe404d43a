"""A probe's result: the encoder beside random initialisation and intensity alone, with intervals over patients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fmct.metrics.intervals import Interval, paired_t_interval, t_interval
from fmct.models.encoder import VisionTransformer, build_encoder
from fmct.publish.load import PublishedEncoder

FORMAT = ("fmct-probe", "1.0")
ENCODER, RANDOM = "encoder", "random initialisation"


@dataclass(frozen=True)
class Row:
    """One line of the table. gain: the encoder's score minus this one's, paired by patient; None for the encoder."""

    name: str
    score: Interval
    gain: Interval | None = None


@dataclass(frozen=True)
class ProbeReport:
    """What one probe found. probe: its name; metric: what `score` is; facts: how it was measured; notes: warnings.

    values: {row name: {patient: value}}, where the score is a mean over patients.
    """

    probe: str
    metric: str
    rows: Sequence[Row]
    facts: Mapping[str, Any]
    notes: Sequence[str] = ()
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, as probe.json holds them."""
        rows = [
            {"name": row.name, "score": row.score.to_dict(), "gain": row.gain.to_dict() if row.gain else None}
            for row in self.rows
        ]
        return {
            "probe": self.probe,
            "metric": self.metric,
            "rows": rows,
            "facts": dict(self.facts),
            "notes": list(self.notes),
            "values": {name: dict(values) for name, values in self.values.items()},
        }

    def __str__(self) -> str:
        """Return the table as text."""
        width = max(len(row.name) for row in self.rows)
        head = f"{'':<{width}}  {self.metric}"
        scores = [str(row.score) for row in self.rows]
        column = max(map(len, [*scores, self.metric]))
        lines = [f"{self.probe} probe", f"{head:<{width + 2 + column}}  encoder minus this"]
        for row, score in zip(self.rows, scores, strict=True):
            lines.append(f"{row.name:<{width}}  {score:<{column}}  {signed(row.gain) if row.gain else ''}".rstrip())
        lines.append("intervals: 95 %, over patients, paired in the last column.")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def signed(gain: Interval) -> str:
    """Return a difference such as `+0.083 [+0.041, +0.125]`, or n/a and the reason."""
    if gain.estimate is None:
        return f"n/a ({gain.note})"
    if gain.low is None or gain.high is None:
        return f"{gain.estimate:+.3f} ({gain.note})"
    return f"{gain.estimate:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def compare_patients(
    encoders: Sequence[Mapping[str, float]],
    random: Sequence[Mapping[str, float]],
    baselines: Mapping[str, Mapping[str, float]],
) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """Return (rows, values) of {patient: score}: of the encoder's seeds, random seeds, and named baselines.

    Seeds are averaged within each patient first, so that patients alone are the unit of every interval. Only patients
    that all of them score count.
    """
    groups = {ENCODER: list(encoders), seeds_name(RANDOM, len(random)): list(random)}
    groups |= {name: [values] for name, values in baselines.items()}
    groups = {name: group for name, group in groups.items() if group}
    patients = sorted(set.intersection(*(set(values) for group in groups.values() for values in group)))
    means = {
        name: {patient: float(np.mean([values[patient] for values in group])) for patient in patients}
        for name, group in groups.items()
    }
    own = list(means[ENCODER].values())
    rows = [
        Row(
            name,
            t_interval(list(values.values())),
            None if name == ENCODER else paired_t_interval(own, list(values.values())),
        )
        for name, values in means.items()
    ]
    return rows, means


def random_encoder(encoder: PublishedEncoder, seed: int) -> PublishedEncoder:
    """Return the encoder's architecture and preprocessing with freshly initialised weights; torch's state is kept."""
    return PublishedEncoder(
        random_model(encoder, seed).to(encoder.device), encoder.config, encoder.preprocessing, origin=f"random {seed}"
    )


def random_model(encoder: PublishedEncoder, seed: int) -> VisionTransformer:
    """Return a freshly initialised VisionTransformer of the encoder's architecture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(
            encoder.config, encoder.preprocessing.channels, encoder.preprocessing.input.spacing_mm or 1.0, seed=seed
        )


def seeds_name(name: str, count: int) -> str:
    """Return a row's name with how many seeds it stands for."""
    return f"{name} ({count} seed{'s' if count != 1 else ''})"
