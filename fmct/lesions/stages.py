"""Stages that run alone: each leaves a folder with a record of its inputs, and is done again when these change."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmct.artefacts import read_json, write_json
from fmct.config import plain
from fmct.errors import ArtefactError, ConfigError
from fmct.lesions.settings import LesionConfig
from fmct.lesions.subjects import Subject, of_split

STAGES = ("normalise", "propose", "discriminate", "clean", "evaluate")
FORMAT = ("fmct-lesion-stage", "1.0")
RECORD = "stage.json"


def chosen(stage: str) -> tuple[str, ...]:
    """Return the stages that a word means: one of STAGES, or `all`. Raises ConfigError."""
    if stage == "all":
        return STAGES
    if stage not in STAGES:
        raise ConfigError(f"stage: expected all or one of {', '.join(STAGES)}, got {stage!r}.")
    return (stage,)


def digest(tree: Any) -> str:
    """Return a hash of plain values."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:16]


class StageFolder:
    """One stage's folder. inputs: what it is made from, plain values; another's outputs enter by `fingerprint`."""

    def __init__(self, folder: Path, name: str, inputs: Mapping[str, Any]) -> None:
        self.path, self.name = folder / name, name
        self.inputs = json.loads(json.dumps(dict(inputs), sort_keys=True, default=str))
        self.fingerprint = digest({"stage": name, **self.inputs})

    @property
    def done(self) -> bool:
        """Whether it was finished from these inputs."""
        if not (self.path / RECORD).is_file():
            return False
        record = read_json(self.path / RECORD, *FORMAT)
        return record["fingerprint"] == self.fingerprint and bool(record["finished"])

    def begin(self, *, keep: bool = False) -> Path:
        """Return the folder, empty, or as it is where it was begun from these inputs (or `keep`)."""
        begun = (self.path / RECORD).is_file() and read_json(self.path / RECORD, *FORMAT)["fingerprint"]
        if self.path.exists() and begun != self.fingerprint and not keep:
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._write(finished=False)
        return self.path

    def finish(self, **facts: Any) -> None:
        """Say that it is done; facts go into its record."""
        self._write(finished=True, **facts)

    def need(self) -> Path:
        """Return the folder of a finished stage. Raises ArtefactError when it is not, or was made from other inputs."""
        if not self.done:
            what = "was made from other settings or data" if self.path.exists() else "has not been run"
            raise ArtefactError(
                f"{self.path}: stage {self.name} {what}. Run the stages before "
                "this one first: the same command with stage=all."
            )
        return self.path

    def _write(self, *, finished: bool, **facts: Any) -> None:
        record = {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "finished": finished,
            **facts,
            "from": self.inputs,
        }
        write_json(self.path / RECORD, *FORMAT, record)


def stage_folders(config: LesionConfig, subjects: Sequence[Subject]) -> dict[str, StageFolder]:
    """Return the folders of a run's stages, each fingerprinted by what it and those before it are made from."""
    content = digest([(s.series, s.split, s.key) for s in subjects])
    regions = [(s.series, s.ignored_key) for s in subjects if s.ignored_key]
    learnt = [(s.series, s.ignored_key) for s in of_split(subjects, config.train_split) if s.ignored_key]
    doubt = {"ignored": digest(learnt)} if learnt else {}  # no negatives are taken from there
    phase = {"seed": config.seed, "train_split": config.train_split}
    # What a standard scale is fitted to, where one is.
    fitted = {} if config.prepare.normalisation.ready else {"train_split": config.train_split}
    inputs: dict[str, dict[str, Any]] = {
        "prepared": {
            "prepare": plain(config.prepare),
            "lesion_sign": config.lesion_sign,
            "series": content,
            **fitted,
        },
        "proposed": {"propose": plain(config.propose), **phase, **doubt},
        "judged": {"discriminate": plain(config.discriminate), **phase},
        "cleaned": {"clean": plain(config.clean)},
        "report": {
            "evaluate": plain(config.evaluate),
            "title": config.title,
            **({"ignored": digest(regions)} if regions else {}),
        },
    }
    stages: dict[str, StageFolder] = {}
    before = ""
    for name, own in inputs.items():
        stages[name] = StageFolder(Path(config.output), name, {**own, "before": before})
        before = stages[name].fingerprint
    return stages
