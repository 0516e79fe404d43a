"""What a downstream run and the model folder made of it say about the network: kind, targets, architecture, input."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fmct.artefacts import read_json, write_json
from fmct.errors import ArtefactError
from fmct.preprocess import Preprocessing
from fmct.shapes import TripleF, triple_of_floats

FORMAT = ("fmct-task", "1.0")
FILE = "task.json"
PREDICTOR = "predictor.safetensors"
"""Weights that a run chose at its end, in place of its newest checkpoint's; not every kind of run writes them."""
POOLS = ("max", "mean", "foreground", "bag")


@dataclass(frozen=True)
class TaskRecord:
    """kind: of fmct.tasks.kinds. targets: one name per output. architecture: plain tree that the kind builds from.

    preprocessing: how a series becomes windows. in_channels, spacing_mm: what the network was built for. pool: how a
    series' logits come from its windows': the `max` or `mean` of each target, their mean weighted by `foreground`, or
    `bag`, a MIL head over all of them.
    pretrained: facts of the encoder it began from (fingerprint, corpus), empty from scratch.
    """

    kind: str
    targets: tuple[str, ...]
    architecture: Mapping[str, Any]
    preprocessing: Preprocessing
    in_channels: int
    spacing_mm: TripleF
    pool: str = "max"
    pretrained: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ArtefactError(f"task: pool is one of {', '.join(POOLS)}; got {self.pool!r}.")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ArtefactError(f"task: expected one name per target, each once; got {list(self.targets)}.")
        if self.in_channels != self.preprocessing.channels:
            raise ArtefactError(
                f"task: the network takes {self.in_channels} channels and the preprocessing makes "
                f"{self.preprocessing.channels}. Build the network for the encoder folder's preprocessing."
            )

    def with_architecture(self, architecture: Mapping[str, Any]) -> "TaskRecord":
        """Return this record for another network of the same task, such as one without what only training needs."""
        return replace(self, architecture=architecture)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers, preprocessing apart."""
        return {
            "kind": self.kind,
            "targets": list(self.targets),
            "architecture": dict(self.architecture),
            "in_channels": self.in_channels,
            "spacing_mm": list(self.spacing_mm),
            "pool": self.pool,
            "pretrained": dict(self.pretrained),
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], preprocessing: Preprocessing, where: str) -> "TaskRecord":
        """Return the record of `to_dict`'s tree. Raises ArtefactError for one that is none."""
        try:
            return cls(
                kind=str(tree["kind"]),
                targets=tuple(str(target) for target in tree["targets"]),
                architecture=dict(tree["architecture"]),
                preprocessing=preprocessing,
                in_channels=int(tree["in_channels"]),
                spacing_mm=triple_of_floats(tree["spacing_mm"], "spacing_mm"),
                pool=str(tree.get("pool", "max")),
                pretrained=dict(tree.get("pretrained", {})),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"{where}: not a usable description of a task ({error}).") from None


def write_task(run: Path, record: TaskRecord) -> None:
    """Write RUN/task.json, from which `fmct export` builds the network again. Called by rank 0 when a run begins."""
    write_json(run / FILE, *FORMAT, {**record.to_dict(), "preprocessing": record.preprocessing.to_dict()})


def read_task(run: Path) -> TaskRecord:
    """Return the record of RUN/task.json. Raises ArtefactError."""
    path = run / FILE
    tree = read_json(path, *FORMAT)
    return TaskRecord.from_dict(tree, Preprocessing.from_dict(tree.get("preprocessing", {}), str(path)), str(path))


def is_downstream_run(run: Path) -> bool:
    """Return whether a run folder is one of `fmct finetune`."""
    return (run / FILE).is_file()
