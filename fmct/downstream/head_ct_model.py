"""What a run on head-CT findings leaves for `fmct export`: the network that predicts, and its frozen thresholds."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmct import distributed
from fmct.data.finding_batches import FindingData
from fmct.errors import DataError
from fmct.inference.feature_cache import encoder_fingerprint
from fmct.metrics import operating_point
from fmct.publish.decision import Decision, write_decision
from fmct.publish.load import PublishedEncoder
from fmct.publish.task_record import PREDICTOR, TaskRecord
from fmct.publish.weights import write_weights
from fmct.tasks.finding_heads import FindingHeads
from fmct.tasks.finding_network import describe_network, predicting_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OperatingPointConfig:
    """How validation chooses each finding's threshold: see fmct.metrics.operating_point.choose."""

    rule: str = "sensitivity"
    level: float = 0.95


def record_of(
    encoder: PublishedEncoder, findings: Sequence[str], *, head: str, untrained: bool, notes: Sequence[str]
) -> TaskRecord:
    """Return what RUN/task.json says: the encoder, one head a finding, and its logits' mean over tiles as features' is.

    untrained: whether the encoder's weights are the control's; notes: of the test patients that it has seen.
    """
    preprocessing = encoder.preprocessing
    facts = {
        "fingerprint": encoder_fingerprint(encoder),
        "step": encoder.facts.get("step"),
        "recipe": encoder.facts.get("recipe"),
        "corpus": {k: v for k, v in (encoder.facts.get("corpus") or {}).items() if k != "voxel_hashes"},
        "overlap": list(notes),
    }
    return TaskRecord(
        kind="finding_heads",
        targets=tuple(findings),
        architecture=describe_network(encoder.config, findings, kind=head),
        preprocessing=preprocessing,
        in_channels=preprocessing.channels,
        spacing_mm=preprocessing.input.spacing_mm or (1.0, 1.0, 1.0),
        pool=preprocessing.input.pool,
        pretrained={} if untrained else facts,
    )


def keep_best(
    run: str | Path,
    task: FindingHeads,
    encoder: PublishedEncoder,
    validation: FindingData,
    point: OperatingPointConfig,
) -> None:
    """Put each finding's best head back; write RUN/predictor.safetensors (with the encoder) and RUN/decision.json.

    encoder: what frozen features came from; a task that trained one has its own. Rank 0 writes.
    """
    task.use_best()
    if distributed.rank():
        return
    weights = predicting_weights(encoder.model if task.encoder is None else task.encoder, task.heads)
    write_weights(Path(run) / PREDICTOR, weights)
    device = next(task.parameters()).device
    scores = {name: task.probabilities(number, validation, device) for number, name in enumerate(task.findings)}
    write_decision(Path(run), choose_thresholds(scores, validation, point))


def choose_thresholds(
    scores: Mapping[str, np.ndarray], validation: FindingData, point: OperatingPointConfig
) -> Decision:
    """Return one threshold a finding, chosen on validation patients, whose score is the largest of their series.

    A finding that validation cannot choose one for (one class alone) has none, and the decision says why.
    """
    facts: dict[str, Any] = {"split": "validation", "criterion": point.rule, "level": point.level}
    thresholds: dict[str, float] = {}
    for number, (finding, values) in enumerate(scores.items()):
        patients = _of_patients(values, validation.labels[:, number], validation.ids)
        found, labels = np.array([p[0] for p in patients]), np.array([p[1] for p in patients])
        try:
            chosen = operating_point.choose(found, labels, point.rule, point.level)
        except DataError as error:
            facts[finding] = {"threshold": None, "reason": str(error)}
            log.warning("validation: %s: no threshold is frozen: %s", finding, error)
            continue
        thresholds[finding], facts[finding] = chosen.threshold, chosen.to_dict()
    return Decision(rule="cls", thresholds=thresholds, validation=facts)


def _of_patients(scores: np.ndarray, labels: np.ndarray, ids: Sequence[str]) -> list[tuple[float, int]]:
    """Return (largest score, largest label) of each patient with a label; ids are PATIENT/SERIES."""
    found: dict[str, tuple[float, int]] = {}
    for score, label, name in zip(scores.tolist(), labels.tolist(), ids, strict=True):
        if label == label:
            before = found.get(name.split("/")[0], (0.0, 0))
            found[name.split("/")[0]] = (max(score, before[0]), max(int(label), before[1]))
    return list(found.values())
