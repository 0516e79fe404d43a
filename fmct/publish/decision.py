"""The decision that a model folder carries: a rule, its threshold per target, and the patients that chose them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fmct.artefacts import read_json, write_json
from fmct.errors import ArtefactError

FORMAT = ("fmct-decision", "1.0")
FILE = "decision.json"
RULES = ("cls", "volume", "fusion")
FUSION_FEATURES = ("logit", "log1p_volume_mm3", "max_probability")


@dataclass(frozen=True)
class Fusion:
    """A logistic regression on FUSION_FEATURES: score = sigmoid(intercept + Σ coefficient · feature)."""

    coefficients: tuple[float, float, float]
    intercept: float


@dataclass(frozen=True)
class Decision:
    """How a series becomes positive or negative, chosen on validation patients and never afterwards.

    rule: `cls` (score: the series' probability), `volume` (score: mm³ of the counted components), `fusion` (score: the
    fitted probability). thresholds: by target, of the score; a score equal to its threshold is positive. A target
    without one gets no decision.
    mask_probability: a voxel belongs to a mask from here on. component_probability, min_volume_mm3: a component counts
    for its volume when its mean probability and its volume reach them. fusion: by target. validation: what the
    thresholds were chosen on and by, for the card: patients, positives, criterion.
    temperature: by target: a probability is sigmoid(logit / temperature), 1 where there is none. abstain: by target,
    the band [low, high] around the threshold: from high on the call is yes, below low no, in between uncertain.

    Raises ArtefactError for numbers that are not finite, a fusion that was not fitted, or a rule `volume` that is not
    monotone.
    """

    rule: str = "cls"
    thresholds: Mapping[str, float] = field(default_factory=dict)
    mask_probability: float = 0.5
    component_probability: float = 0.5
    min_volume_mm3: float = 20.0
    fusion: Mapping[str, Fusion] = field(default_factory=dict)
    validation: Mapping[str, Any] = field(default_factory=dict)
    temperature: Mapping[str, float] = field(default_factory=dict)
    abstain: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = [*self.thresholds.values(), self.mask_probability, self.component_probability, self.min_volume_mm3]
        numbers += [n for fusion in self.fusion.values() for n in (*fusion.coefficients, fusion.intercept)]
        if self.rule not in RULES or not all(math.isfinite(number) for number in numbers):
            raise ArtefactError(
                f"decision: expected a rule of {', '.join(RULES)} and finite numbers; got {self.rule!r}, {numbers}."
            )
        self._check_calibration()
        if self.rule == "volume" and self.component_probability > self.mask_probability:
            raise ArtefactError(
                f"decision: component_probability {self.component_probability:g} is above mask_probability "
                f"{self.mask_probability:g}: a component could then grow, its mean fall, and a positive series become "
                "negative. Raise mask_probability instead."
            )
        unfitted = [target for target in self.thresholds if self.rule == "fusion" and target not in self.fusion]
        if unfitted:
            raise ArtefactError(
                f"decision: rule fusion has no fitted regression for {', '.join(unfitted)}. Fit it on validation "
                "patients (fmct.inference.decision.fit_fusion), or take rule cls."
            )

    def _check_calibration(self) -> None:
        if not all(0 < value < math.inf for value in self.temperature.values()):
            raise ArtefactError(f"decision: temperatures are positive; got {dict(self.temperature)}.")
        for target, (low, high) in self.abstain.items():
            threshold = self.thresholds.get(target, math.nan)
            if not low <= threshold <= high:
                raise ArtefactError(
                    f"decision: the band of {target}, {low:g} to {high:g}, does not hold its threshold {threshold:g}: "
                    "a call could then contradict the decision. Widen the band."
                )

    def call(self, target: str, probability: float) -> str:
        """Return `yes`, `no` or `uncertain` of a calibrated probability; "" for a target without a threshold.

        Without a band the threshold alone decides; what has no probability is uncertain.
        """
        if target not in self.thresholds:
            return ""
        low, high = self.abstain.get(target, (self.thresholds[target],) * 2)
        return "yes" if probability >= high else "no" if probability < low else "uncertain"

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers."""
        tree = asdict(self)
        for fusion in tree["fusion"].values():
            fusion["coefficients"] = list(fusion["coefficients"])
        tree["abstain"] = {target: list(band) for target, band in self.abstain.items()}
        return {key: value for key, value in tree.items() if value or key not in ("temperature", "abstain")}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], where: str) -> "Decision":
        """Return the Decision of `to_dict`'s tree. Raises ArtefactError for one that is none."""
        try:
            fusion = {
                target: Fusion(_three(part["coefficients"]), float(part["intercept"]))
                for target, part in tree.get("fusion", {}).items()
            }
            thresholds = {target: float(value) for target, value in tree.get("thresholds", {}).items()}
            abstain = {target: (float(low), float(high)) for target, (low, high) in tree.get("abstain", {}).items()}
            rest = {key: value for key, value in tree.items() if key not in ("fusion", "thresholds", "abstain")}
            return cls(**rest, thresholds=thresholds, fusion=fusion, abstain=abstain)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"{where}: not a usable decision ({error}).") from None


def write_decision(run: Path, decision: Decision) -> None:
    """Write RUN/decision.json, which `fmct export` puts into the model folder."""
    write_json(run / FILE, *FORMAT, decision.to_dict())


def read_decision(run: Path) -> Decision | None:
    """Return the decision of RUN/decision.json, None where there is none."""
    path = run / FILE
    return Decision.from_dict(read_json(path, *FORMAT), str(path)) if path.is_file() else None


def _three(values: Any) -> tuple[float, float, float]:
    a, b, c = (float(value) for value in values)
    return (a, b, c)
