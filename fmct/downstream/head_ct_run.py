"""What a run on head-CT findings reads before it trains, and what it writes when it has."""

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmct.artefacts import write_json, write_text
from fmct.data.cohort import Cohort, few_shot
from fmct.data.finding_batches import FindingData
from fmct.downstream.head_ct import REPORTED, findings_table, table_text, table_tree
from fmct.errors import ConfigError
from fmct.inference.feature_cache import FeatureCache, head_arrays
from fmct.inference.predictions import Prediction, write_predictions
from fmct.metrics.delong import auroc
from fmct.models.adaptation import from_scratch
from fmct.models.pooling import pooling_heads
from fmct.publish.adapters import open_encoder
from fmct.publish.load import PublishedEncoder
from fmct.tasks.finding_heads import FindingHeads, Scorer

FORMAT = ("fmct-head-ct-table", "1.0")
Splits = tuple[FindingData, FindingData, FindingData]


def first_encoder(
    path: str, layout: str, options: Mapping[str, Any], *, device: torch.device, untrained: int | None
) -> PublishedEncoder:
    """Return the encoder of a folder or of another project's file; `untrained` is the control's seed, None without."""
    encoder = open_encoder(path, layout=layout, device=device, **options)
    if untrained is not None:
        encoder.model.load_state_dict(from_scratch(encoder.model, seed=untrained).state_dict())
    return encoder


def feature_source(encoder: PublishedEncoder, folder: str, mode: str, head: str) -> FeatureCache:
    """Return the cache of what heads read: inputs where the encoder trains, tokens to attend to, or pooled features."""
    kind = "inputs" if mode == "full" else "tokens" if head == "attentive" else "pooled"
    return FeatureCache(folder, encoder, kind)


def read_split(
    cohort: Cohort, cache: FeatureCache, findings: Sequence[str], splits: Sequence[str], *, shots: int, seed: int
) -> Splits:
    """Return the (train, validation, test) data of some findings.

    shots: patients with and patients without each finding that its head may draw in training, 0 for all.
    """
    if len(splits) != 3:
        raise ConfigError(f"splits: expected three names (train, validation, test), got {', '.join(splits)}.")
    numbers = [cohort.targets.index(finding) for finding in findings]
    parts = []
    for place, split in enumerate(splits):
        samples = cohort.of(split)
        ids = [sample.entry.id for sample in samples]
        chosen = None
        if shots and place == 0:
            drawn = [few_shot(cohort, shots, seed=seed, split=split, target=name).of(split) for name in findings]
            sets = [{sample.entry.id for sample in part} for part in drawn]
            chosen = np.array([[name in part for part in sets] for name in ids])
        parts.append(
            FindingData(
                arrays=head_arrays(cache, cohort.store, [sample.entry for sample in samples]),
                labels=np.array([[sample.labels[number] for number in numbers] for sample in samples]),
                ids=[f"{sample.patient}/{sample.entry.id}" for sample in samples],
                targets=list(findings),
                chosen=chosen,
            )
        )
    return parts[0], parts[1], parts[2]


def fingerprint(cohort: Cohort) -> dict[str, str]:
    """Return {store: SHA-256 of its labelled series' content, splits and labels}, by which a run knows its data."""
    rows = [f"{s.entry.content_hash} {s.split} {s.labels}" for s in cohort.samples]
    return {str(cohort.store.path): hashlib.sha256("\n".join(rows).encode()).hexdigest()}


def build_heads(
    encoder: PublishedEncoder,
    findings: Sequence[str],
    data: Splits,
    *,
    kind: str,
    train_encoder: bool,
    epoch: int,
    seed: int,
) -> FindingHeads:
    """Return the task: heads drawn from the seed, a copy of the encoder where it trains, validation every epoch."""
    torch.manual_seed(seed)
    return FindingHeads(
        encoder.num_features,
        findings,
        kind=kind,
        num_heads=pooling_heads(encoder.num_features),
        encoder=copy.deepcopy(encoder.model).requires_grad_(True) if train_encoder else None,
        score=auroc_scorer(data[1], encoder.device),
        score_every=epoch,
    )


def auroc_scorer(data: FindingData, device: torch.device | str) -> Scorer:
    """Return what scores a task's findings by AUROC over the labelled series of a split; NaN where it is undefined."""

    def score(task: FindingHeads) -> list[float]:
        """Return one AUROC a finding."""
        found = []
        for number in range(len(task.findings)):
            known = ~np.isnan(data.labels[:, number])
            probabilities = task.probabilities(number, data, device)
            found.append(auroc(probabilities[known], data.labels[known, number]).value)
        return found

    return score


def conclude(
    output: str | Path,
    parts: Sequence[tuple[FindingHeads, Splits]],
    splits: Sequence[str],
    *,
    seed: int,
    published: str,
    fine_tuned: bool,
    notes: Sequence[str],
) -> str:
    """Write predictions.csv (validation and test), table.json and table.md into a run folder; return the table's text.

    The table is of the test split. `notes` stand above it.
    """
    if published and published not in REPORTED:
        raise ConfigError(f"published: expected {' or '.join(REPORTED)} or nothing, got {published!r}.")
    predictions, labels = [], {}
    for task, data in parts:
        device = next(task.parameters()).device
        for split, part in zip(splits[1:], data[1:], strict=True):
            for number, finding in enumerate(task.findings):
                rows = task.probabilities(number, part, device)
                predictions += [
                    _prediction(name, finding, value, split, seed)
                    for name, value in zip(part.ids, rows.tolist(), strict=True)
                ]
        for number, finding in enumerate(task.findings):
            values = data[2].labels[:, number].tolist()
            known = zip((name.split("/")[1] for name in data[2].ids), values, strict=True)
            labels[finding] = {series: label for series, label in known if not math.isnan(label)}
    tested = [prediction for prediction in predictions if prediction.split == splits[2]]
    rows = findings_table(tested, labels, published=published, fine_tuned=fine_tuned)
    folder = Path(output)
    text = "\n\n".join([*notes, table_text(rows)])
    write_predictions(folder / "predictions.csv", predictions)
    write_json(folder / "table.json", *FORMAT, {"published": published, "notes": list(notes), "rows": table_tree(rows)})
    write_text(folder / "table.md", text + "\n")
    return text


def _prediction(name: str, target: str, probability: float, split: str, seed: int) -> Prediction:
    patient, series = name.split("/")
    return Prediction(patient, series, target, probability, split=split, seed=str(seed))
