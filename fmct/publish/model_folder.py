"""Writing a model folder: network, preprocessing, decision, card, golden numbers and checksums, or nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fmct.artefacts import stamped
from fmct.errors import ArtefactError
from fmct.preprocess import FORMAT as PREPROCESS_FORMAT
from fmct.publish import golden, layout
from fmct.publish.decision import Decision
from fmct.publish.folder import same_origin, write_description
from fmct.publish.load_model import MODEL_FORMAT, PublishedModel
from fmct.publish.model_card import model_card
from fmct.publish.model_golden import model_numbers
from fmct.publish.task_record import TaskRecord
from fmct.publish.weights import check_values, load_into, write_weights
from fmct.tasks.kinds import kind_named


def write_model(
    folder: str | Path,
    module: nn.Module,
    record: TaskRecord,
    *,
    decision: Decision | None = None,
    facts: Mapping[str, Any] | None = None,
    license_id: str = "other",
    overwrite: bool = False,
    baseline: Path | None = None,
) -> Path:
    """Write the folder of a downstream model and return its path; it appears whole or not at all.

    module: the network that predicts, fp32. It is built again from `record` before anything is written, so that what
    is published can be loaded. decision: the frozen operating point; without one `fmct predict` gives probabilities
    only. facts: what the card says of the training. baseline: a file that goes along as baseline.json. A folder that
    holds the same run, or a model that `overwrite` gives up, is replaced; anything else is refused. Raises
    ArtefactError, WeightsError.
    """
    folder, facts = Path(folder), dict(facts or {})
    replace = overwrite or same_origin(folder, facts)
    layout.refuse_to_overwrite(folder, replace=replace)
    _check_decision(decision, record)
    state = module.state_dict()
    check_values(state, where="the network")
    kind = kind_named(record.kind, "task")
    rebuilt = kind.build_predictor(record.architecture, in_channels=record.in_channels, spacing_mm=record.spacing_mm)
    load_into(rebuilt, {name: value.cpu() for name, value in state.items()}, where="the network as it is built again")
    model = PublishedModel(rebuilt, record, decision=decision, facts=facts)
    numbers = model_numbers(model, record, torch.device("cpu"))
    description = {
        "task": record.to_dict(),
        "decision": decision.to_dict() if decision else None,
        "parameters": sum(tensor.numel() for tensor in rebuilt.parameters()),
        "training": facts,
    }
    with layout.committed(folder, replace=replace) as temporary:
        write_weights(temporary / layout.WEIGHTS, rebuilt.state_dict())
        write_description(temporary / layout.CONFIG, stamped(*MODEL_FORMAT, description))
        write_description(temporary / layout.PREPROCESS, stamped(*PREPROCESS_FORMAT, record.preprocessing.to_dict()))
        write_description(temporary / layout.GOLDEN, stamped(*golden.FORMAT, numbers))
        text = model_card(model, name=folder.name, license_id=license_id)
        (temporary / layout.CARD).write_text(text, encoding="utf-8")
        if baseline is not None:
            (temporary / layout.BASELINE).write_bytes(baseline.read_bytes())
        layout.write_sums(temporary)
    return folder


def _check_decision(decision: Decision | None, record: TaskRecord) -> None:
    strangers = sorted(set(decision.thresholds) - set(record.targets)) if decision else []
    if strangers:
        raise ArtefactError(
            f"decision: has a threshold for {', '.join(strangers)}, and the model's targets are "
            f"{', '.join(record.targets)}. Choose the operating point of this model's own targets."
        )
