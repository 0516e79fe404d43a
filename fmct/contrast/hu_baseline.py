"""The baseline without a network: boosted trees on what HU say of a scan. An encoder has to beat it.

Fitted and validated on the splits of the run that it stands beside, with the same choice of temperature, threshold and
band. Written as JSON (see fmct.contrast.boosted_trees for why not as a pickle).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fmct.artefacts import read_json, write_json
from fmct.contrast.boosted_trees import BoostedTrees, fit_classes, fit_number
from fmct.contrast.hu_features import FEATURES
from fmct.errors import ArtefactError, DataError
from fmct.metrics import operating_point
from fmct.metrics.calibration import temperature_of
from fmct.metrics.operating_point import band_around
from fmct.models.contrast import MOST_SECONDS, PHASES
from fmct.publish.decision import Decision
from fmct.publish.layout import BASELINE
from fmct.tasks.contrast import LABELS

FORMAT = ("fmct-hu-baseline", "1.0")
PRESENCE = LABELS[0]
LEAST_SERIES = 8
"""Series with a known label below which trees would only learn them by heart."""


@dataclass(frozen=True)
class BaselineCall:
    """probability: of contrast, calibrated. decision: yes, no or uncertain. phase, seconds: None where not learned."""

    probability: float
    decision: str
    phase: str | None
    shares: Mapping[str, float]
    seconds: float | None


@dataclass(frozen=True)
class HuBaseline:
    """Trees for presence, for the phases `phases` (None with fewer than two in training) and for log seconds."""

    presence: BoostedTrees
    decision: Decision
    phases: tuple[str, ...] = ()
    phase: BoostedTrees | None = None
    seconds: BoostedTrees | None = None

    def calls(self, features: np.ndarray) -> list[BaselineCall]:
        """Return a call for each of (n, F) rows of `hu_features`."""
        temperature = self.decision.temperature.get(PRESENCE, 1.0)
        odds = self.presence.raw(features)[:, 0] / temperature
        probabilities = (1 / (1 + np.exp(-np.clip(odds, -700, 700)))).tolist()
        shares = self._shares(features)
        times: list[float | None] = [None] * len(features)
        if self.seconds is not None:
            times = np.clip(np.expm1(self.seconds.raw(features)[:, 0]), 0, MOST_SECONDS).tolist()
        return [
            BaselineCall(
                probability,
                self.decision.call(PRESENCE, probability) or "uncertain",
                max(share, key=lambda name: share[name]) if share else None,
                share,
                time,
            )
            for probability, share, time in zip(probabilities, shares, times, strict=True)
        ]

    def _shares(self, features: np.ndarray) -> list[dict[str, float]]:
        """Return {phase: probability} of each row, 0 for a phase that training lacked; {} where none was learned."""
        if self.phase is None:
            return [{} for _ in features]
        raw = self.phase.raw(features)
        if raw.shape[1] == 1:  # two phases: the log-odds of the second
            raw = np.concatenate([np.zeros_like(raw), raw], axis=1)
        odds = np.exp(raw - raw.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        return [{**dict.fromkeys(PHASES, 0.0), **dict(zip(self.phases, row, strict=True))} for row in odds.tolist()]


@dataclass(frozen=True)
class Labelled:
    """Series of a split: features (n, F) and labels (n, LABELS), NaN where unknown."""

    features: np.ndarray
    labels: np.ndarray

    def known(self, column: int) -> "Labelled":
        """Return the series whose label in this column is known."""
        kept = ~np.isnan(self.labels[:, column])
        return Labelled(self.features[kept], self.labels[kept])


def fit_baseline(
    train: Labelled, validation: Labelled, *, rule: str = "youden", level: float = 0.95, abstain: Sequence[float] = ()
) -> HuBaseline:
    """Return the baseline fitted on `train`; `validation` chooses rounds, temperature, threshold (by `rule`) and band.

    Validation with one class only chooses no threshold; its reason stands in decision.validation. Raises DataError for
    fewer than LEAST_SERIES labelled training series, or of one class.
    """
    known, held = train.known(0), validation.known(0)
    truth = known.labels[:, 0].astype(int)
    if len(truth) < LEAST_SERIES or len(set(truth.tolist())) < 2:
        raise DataError(
            f"the HU baseline needs {LEAST_SERIES} labelled training series with and without contrast; there are "
            f"{int(truth.sum())} with and {int((1 - truth).sum())} without. Label more."
        )
    presence = fit_classes(known.features, truth, held.features, held.labels[:, 0].astype(int))
    decision = _decision(presence, held, rule, level, abstain)
    phases, phase = _fit_phase(train, validation)
    timed, held_timed = train.known(-1), validation.known(-1)
    seconds = None
    if len(timed.labels) >= LEAST_SERIES:
        logs = [np.log1p(part.labels[:, -1]) for part in (timed, held_timed)]
        seconds = fit_number(timed.features, logs[0], held_timed.features, logs[1])
    return HuBaseline(presence, decision, phases, phase, seconds)


def write_baseline(path: Path, baseline: HuBaseline) -> None:
    """Write a baseline as JSON."""
    parts = {name: getattr(baseline, name) for name in ("presence", "phase", "seconds")}
    trees = {name: part.to_dict() if part is not None else None for name, part in parts.items()}
    content = {"features": list(FEATURES), "phases": list(baseline.phases), "decision": baseline.decision.to_dict()}
    write_json(path, *FORMAT, {**content, **trees})


def read_baseline(path: Path) -> HuBaseline:
    """Return the baseline of a file. Raises ArtefactError for one of other features than this fmct computes."""
    tree = read_json(path, *FORMAT)
    if list(tree.get("features", [])) != list(FEATURES):
        raise ArtefactError(f"{path}: reads other HU features than this fmct computes. Install the fmct that wrote it.")
    parts: dict[str, Any] = {
        name: BoostedTrees.from_dict(tree[name], f"{path}: {name}") if tree.get(name) else None
        for name in ("presence", "phase", "seconds")
    }
    if parts["presence"] is None:
        raise ArtefactError(f"{path}: holds no trees for {PRESENCE}.")
    decision = Decision.from_dict(tree.get("decision", {}), str(path))
    return HuBaseline(decision=decision, phases=tuple(tree.get("phases", ())), **parts)


@lru_cache(maxsize=4)
def baseline_in(folder: Path | None) -> HuBaseline | None:
    """Return the baseline of a model folder, None where it has none."""
    return read_baseline(folder / BASELINE) if folder is not None and (folder / BASELINE).is_file() else None


def _decision(presence: BoostedTrees, held: Labelled, rule: str, level: float, abstain: Sequence[float]) -> Decision:
    truth = held.labels[:, 0].astype(int)
    probabilities = 1 / (1 + np.exp(-presence.raw(held.features)[:, 0]))
    try:
        temperature = temperature_of(probabilities, truth)
        warm = 1 / (1 + np.exp(-presence.raw(held.features)[:, 0] / temperature))
        point = operating_point.midway(operating_point.choose(warm, truth, rule, level), warm)
    except DataError as error:
        return Decision(validation={PRESENCE: {"threshold": None, "reason": str(error)}})
    return Decision(
        thresholds={PRESENCE: point.threshold},
        temperature={PRESENCE: temperature},
        abstain={PRESENCE: band_around(abstain, point.threshold)} if abstain else {},
        validation={PRESENCE: {**point.to_dict(), "unit": "series"}},
    )


def _fit_phase(train: Labelled, validation: Labelled) -> tuple[tuple[str, ...], BoostedTrees | None]:
    """Return the phases that training has, and trees for them; none with fewer than two or too few series."""
    known, held = train.known(1), validation.known(1)
    classes = known.labels[:, 1:-1].argmax(axis=1)
    present = sorted(set(classes.tolist()))
    if len(present) < 2 or len(classes) < LEAST_SERIES:
        return (), None
    number = {phase: place for place, phase in enumerate(present)}
    of_held = held.labels[:, 1:-1].argmax(axis=1)
    seen = np.isin(of_held, present)
    trees = fit_classes(
        known.features,
        np.array([number[phase] for phase in classes.tolist()]),
        held.features[seen],
        np.array([number[phase] for phase in of_held[seen].tolist()], dtype=int),
    )
    return tuple(PHASES[phase] for phase in present), trees
