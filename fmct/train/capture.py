"""Captures: what a run leaves when its loss is not finite, and how to play that moment again.

A capture is a checkpoint folder, `captures/step-000120/`, with the state before the update that failed, and beside its
files `capture.json`: the scheduled values, the draws and the sample ids of every rank and forward pass.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fmct import distributed
from fmct.artefacts import read_json, write_json
from fmct.errors import CheckpointError
from fmct.train import checkpoint
from fmct.train.engine import Engine

CAPTURE = "capture.json"


def save_capture(
    folder: Path, engine: Engine, state: Mapping[str, Any], *, values: Mapping[str, float], facts: Mapping[str, Any]
) -> Path:
    """Commit a capture under `folder`/captures and return it. Collective."""
    capture = checkpoint.save(folder / "captures", engine, state)
    if distributed.rank() == 0:
        write_json(capture / CAPTURE, "fmct-capture", "1.0", {"values": dict(values), **_finite(facts)})
    distributed.barrier()
    return capture


def read_capture(capture: Path) -> dict[str, Any]:
    """Return a capture's facts: values, step, draw (of its first sample), draws, samples. Raises CheckpointError."""
    if not (capture / CAPTURE).is_file():
        raise CheckpointError(f"{capture}: no {CAPTURE} in it; expected a folder such as RUN/captures/step-000120.")
    checkpoint.verify(capture)
    return read_json(capture / CAPTURE, "fmct-capture", "1.0")


def replay(engine: Engine, capture: Path, batches_from: Callable[[int], Iterator[Any]]) -> list[str]:
    """Run the captured update's forward and backward again, without stepping, and return what is not finite, as lines.

    batches_from(draw) gives the run's batches from a draw on. The engine must be a plain torch one on one process, so
    that each parameter's own gradient can be looked at; then its batch is the whole batch of all ranks.
    """
    facts = read_capture(capture)
    checkpoint.restore(engine, capture)
    found = []
    for number, batch in enumerate(itertools.islice(batches_from(int(facts["draw"])), engine.accumulate)):
        output = engine.forward(batch, facts["values"])
        scalars = {"loss": output.loss, **{f"loss/{name}": value for name, value in output.terms.items()}}
        for name, tensor in scalars.items():
            value = tensor.item()
            found.append(f"pass {number}: {name} = {value:.6g}{'' if math.isfinite(value) else '   NOT FINITE'}")
        found.append(f"pass {number}: samples {', '.join(output.samples)}")
        output.loss.backward()
    for name, parameter in engine.task.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            found.append(f"gradient of {name}: NOT FINITE")
    return found


def _finite(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key in ("step", "draw", "draws", "samples")}
