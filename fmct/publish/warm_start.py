"""Warm starts: weights of an encoder folder or of another run, into a task that is about to train. Never silently."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fmct.errors import ArtefactError, WeightsError
from fmct.models.positions import resize_positions
from fmct.publish.layout import WEIGHTS, verify
from fmct.publish.weights import check_values, compare, read_weights
from fmct.train import checkpoint

POSITIONS = "positions.table"


class Student(Protocol):
    """What is warm-started: a task with an encoder (and heads) and a teacher that can be set back to the student."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the task's parameters by name."""
        ...

    def reset_teacher(self) -> None:
        """Make the teacher a copy of the student."""
        ...


def warm_start(task: Student, source: str, *, allow: Sequence[str] = ()) -> str:
    """Load weights of `source` into `task`, teacher included, and return the load report as text.

    source: an encoder folder (its encoder; heads then start from the seed) or a run folder (the teacher's encoder and
    heads of its newest checkpoint that verifies). Learned positions of another grid are interpolated. Raises
    WeightsError on any tensor missing, unexpected or of another shape whose name begins with none of `allow`.
    """
    found, scope = read_source(Path(source))
    own = {name: value for name, value in task.state_dict().items() if name.startswith(scope)}
    found, resized = _resized(found, own)
    report = compare(own, found)
    wrong = [f"missing {name}" for name in report.missing if not _allowed(name, allow)]
    wrong += [f"unexpected {name}" for name in report.unexpected if not _allowed(name, allow)]
    wrong += [
        f"{name} is {there} there and {here} here" for name, there, here in report.shape if not _allowed(name, allow)
    ]
    if wrong:
        shown = "; ".join(wrong[:4]) + (" …" if len(wrong) > 4 else "")
        raise WeightsError(
            f"init={source}: the weights do not fit ({report}): {shown}. "
            "Give this run the encoder and heads of that one, or name what may differ: init_allow=[PREFIX, …]."
        )
    check_values(found, where=source)
    with torch.no_grad():
        for name in report.matched:
            own[name].copy_(found[name])
    task.reset_teacher()
    parts = [f"warm start from {source}: {report}"]
    if resized:
        parts.append(f"interpolated to this grid: {', '.join(resized)}")
    left = [name for name in task.state_dict() if name not in report.matched]
    if left:
        parts.append(f"{len(left)} tensors start from the seed ({', '.join(sorted({n.split('.')[0] for n in left}))})")
    return "; ".join(parts)


def read_source(source: Path) -> tuple[dict[str, Tensor], str]:
    """Return (tensors under the task's names, the prefix they are to fill) of an encoder or a run folder."""
    if (source / "checkpoints").is_dir():
        newest = checkpoint.newest(source / "checkpoints")
        if newest is None:
            raise ArtefactError(f"init={source}: a run folder without a checkpoint that verifies.")
        state = checkpoint.read(newest)
        teacher = state.task.get("teacher")
        if not isinstance(teacher, Mapping):
            raise ArtefactError(f"init={source}: its checkpoint holds no teacher; expected a run of self-distillation.")
        # The reconstruction head has no teacher: it goes along as it is.
        return {**state.parameters, **teacher}, ""
    if (source / WEIGHTS).is_file():
        verify(source)
        return {f"encoder.{name}": value for name, value in read_weights(source / WEIGHTS).items()}, "encoder."
    raise ArtefactError(
        f"init={source}: neither an encoder folder (model.safetensors) nor a run folder (checkpoints/). Check the path."
    )


def _resized(found: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors with learned positions brought to this model's grid, and the names of those."""
    names = [
        name
        for name, value in found.items()
        if name.endswith(POSITIONS) and name in own and value.shape != own[name].shape and value.ndim == own[name].ndim
    ]
    for name in names:
        found = {**found, name: _resize(found[name], own[name])}
    return found, names


def _resize(table: Tensor, like: Tensor) -> Tensor:
    old, new = _cube(table.shape[-2]), _cube(like.shape[-2])
    if old is None or new is None:
        return table
    return resize_positions(table, old, new).view_as(like)


def _cube(count: int) -> tuple[int, int, int] | None:
    side = round(count ** (1 / 3))
    return (side, side, side) if side**3 == count else None


def _allowed(name: str, allow: Sequence[str]) -> bool:
    return any(name.startswith(prefix) for prefix in allow)
