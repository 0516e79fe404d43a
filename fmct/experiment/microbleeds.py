"""What distillation adds to a lesion detector, on SYNTHETIC brains: cells by arm and seed, and the tables of all.

Every cell of a seed begins from the same detector and its candidates, so that arms differ in the student alone; every
seed is judged on the same fresh patients, so that arms are paired by patient.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fmct import randomness
from fmct.artefacts import write_json, write_text
from fmct.errors import ConfigError
from fmct.experiment.grid import Cell
from fmct.experiment.table import contrast_lines
from fmct.lesions.candidates import read_candidates
from fmct.lesions.detection import judge
from fmct.lesions.evaluation import per_patient, score_stage, stage_tables
from fmct.lesions.phase import patch_size
from fmct.lesions.pipeline import Pipeline
from fmct.lesions.reporting import STAGE_NAMES, matched, rule_of
from fmct.lesions.settings import LesionConfig
from fmct.lesions.subjects import Source, Subject
from fmct.metrics.contrasts import Contrast, compare_arms
from fmct.metrics.lesions import Candidate as Call
from fmct.metrics.lesions import MatchedScan
from fmct.phantoms.brain_mr import brain_phantom
from fmct.shapes import Triple, TripleF, triple, triple_of_floats
from fmct.tasks.lesion_discrimination import DistillationConfig
from fmct.train.session import Options

FORMAT = ("fmct-microbleed-experiment", "1.0")
TEACHER = "discrimination by the teacher"
MEASURES = {"tpr": "cluster TPR", "fp": "FP per subject", "f1": "F1 of a subject"}


@dataclass(frozen=True)
class PhantomConfig:
    """The SYNTHETIC patients. train, test: how many; shape, spacing_mm: of their scans; seed: of all of them."""

    train: int = 24
    test: int = 100
    shape: list[int] = field(default_factory=lambda: [64, 80, 64])
    spacing_mm: float = 1.5
    seed: int = 1


def phantom_subjects(config: PhantomConfig) -> list[Subject]:
    """Return the patients; a quarter of each split has no microbleed."""
    shape = triple(config.shape, "phantoms.shape")
    spacing = triple_of_floats([config.spacing_mm] * 3, "phantoms.spacing_mm")
    subjects = []
    for split, count in (("train", config.train), ("test", config.test)):
        for number in range(count):
            word = randomness.word(config.seed, "microbleeds", split, number) >> 1
            lesions = 0 if number % 4 == 3 else 1 + word % 6

            read = partial(_draw, word, shape, spacing, lesions)
            name = f"SYN-{split}-{number:04d}"
            subjects.append(Subject(name, name, split, f"{word} {lesions} {shape} {spacing}", read))
    return subjects


def _draw(word: int, shape: Triple, spacing: TripleF, lesions: int) -> Source:
    phantom = brain_phantom(word, shape=shape, spacing_mm=spacing, lesions=lesions)
    return Source(phantom.image, phantom.brain, phantom.lesions.voxels)


class MicrobleedCells:
    """Runs cells. base: the detector's configuration; arms: {name: its distillation}."""

    def __init__(
        self,
        output: Path,
        base: LesionConfig,
        arms: Mapping[str, DistillationConfig],
        subjects: Sequence[Subject],
        device: torch.device,
    ) -> None:
        if not arms:
            raise ConfigError("arms: name at least one, with its distillation.")
        self.output, self.base, self.arms, self.subjects, self.device = output, base, dict(arms), subjects, device

    def run(self, cell: Cell) -> dict[str, Any]:
        """Return a cell's matched scans by stage, and its scores a patient."""
        shared = self._pipeline("shared", cell.seed, DistillationConfig(alpha=0.0))
        shared.run("normalise")
        detector = self._pipeline(f"seed{cell.seed}", cell.seed, DistillationConfig(alpha=0.0))
        self._link(detector)
        detector.run("propose")
        pipeline = self._pipeline(f"seed{cell.seed}-{cell.arm}", cell.seed, self.arms[cell.arm])
        self._link(pipeline)
        for part in ("detector", "proposed"):
            if not (pipeline.folder / part).exists():
                shutil.copytree(detector.folder / part, pipeline.folder / part)
        pipeline.run("discriminate")
        pipeline.run("clean")
        scans = self._scans(pipeline)
        if self.arms[cell.arm].listens:
            scans[TEACHER] = self._teacher_scans(pipeline)
        return {
            "stages": {stage: [_tree(scan) for scan in found] for stage, found in scans.items()},
            "scores": per_patient(scans[STAGE_NAMES[-1]]),
        }

    def _pipeline(self, name: str, seed: int, distil: DistillationConfig) -> Pipeline:
        config = replace(
            self.base,
            output=str(self.output / "runs" / name),
            seed=seed,
            discriminate=replace(self.base.discriminate, distil=distil),
        )
        return Pipeline(config, self.subjects, options=Options(), device=self.device)

    def _link(self, pipeline: Pipeline) -> None:
        """Let a run read the series that were prepared once for all."""
        place = pipeline.folder / "prepared"
        pipeline.folder.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to((self.output / "runs" / "shared" / "prepared").resolve(), target_is_directory=True)

    def _scans(self, pipeline: Pipeline) -> dict[str, list[MatchedScan]]:
        candidates = read_candidates(pipeline.folder / "cleaned" / "candidates.csv")
        tested = [subject for subject in self.subjects if subject.split == self.base.evaluate.split]
        cases = [pipeline.case(subject, candidates) for subject in tested]
        return matched(cases, rule_of(self.base.evaluate))

    def _teacher_scans(self, pipeline: Pipeline) -> list[MatchedScan]:
        """Return what the discrimination would leave if the teacher judged."""
        teacher, settings = pipeline.teacher(), pipeline.config.discriminate
        proposed = read_candidates(pipeline.folder / "proposed" / "candidates.csv")
        tested = [subject for subject in self.subjects if subject.split == self.base.evaluate.split]
        cases = []
        for subject in tested:
            own = [c for c in proposed if c.series == subject.series]
            size = patch_size(settings.teacher_training)
            scores = judge(teacher, pipeline.prepared(subject), own, size=size, device=self.device)
            judged = [c.judged(score, threshold=settings.threshold) for c, score in zip(own, scores, strict=True)]
            cases.append(pipeline.case(subject, judged))
        return matched(cases, rule_of(self.base.evaluate))[STAGE_NAMES[1]]


def write_tables(
    folder: Path, cells: Sequence[Mapping[str, Any]], contrasts: Sequence[Contrast], *, left: int, title: str
) -> str:
    """Write FOLDER/table.md and results.json of the finished cells, and return the tables as text.

    A stage's row pools the seeds: a patient's scans of all seeds share its weight, and intervals are over patients.
    """
    arms = list(dict.fromkeys(str(cell["arm"]) for cell in cells))
    parts = [f"# {title}\n\n{len(cells)} cells done, {left} left.\n"]
    results: dict[str, Any] = {"title": title, "left": left, "arms": {}, "contrasts": {}}
    for arm in arms:
        own = [cell for cell in cells if cell["arm"] == arm]
        stages = [score_stage(name, found) for name, found in _stages(own).items()]
        parts.append(stage_tables(stages, title=f"{title}: {arm}, {len(own)} seeds together"))
        results["arms"][arm] = [stage.to_dict() for stage in stages]
    known = [c for c in contrasts if c.first in arms and c.second in arms]
    for measure, name in MEASURES.items() if known else ():
        values = {arm: [cell["scores"][measure] for cell in cells if cell["arm"] == arm] for arm in arms}
        found = compare_arms(values, known)
        lines = "\n".join(contrast_lines(found))
        parts.append(f"{name} after clean-up, paired by patient, seeds averaged\n\n{lines}\n")
        results["contrasts"][measure] = [result.to_dict() for result in found]
    parts += [f"Not yet: {c}." for c in contrasts if c not in known]
    text = "\n".join(parts)
    write_text(folder / "table.md", text)
    write_json(folder / "results.json", *FORMAT, results)
    return text


def _stages(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[MatchedScan]]:
    names = [name for name in (*STAGE_NAMES[:2], TEACHER, STAGE_NAMES[2]) if name in cells[0]["stages"]]
    return {name: [_scan(tree, int(cell["seed"])) for cell in cells for tree in cell["stages"][name]] for name in names}


def _tree(scan: MatchedScan) -> dict[str, Any]:
    calls = [[c.score, c.volume_mm3, list(c.centre), list(c.hits), c.ignored] for c in scan.candidates]
    return {"patient": scan.patient, "lesions_mm3": list(scan.lesions_mm3), "candidates": calls}


def _scan(tree: Mapping[str, Any], seed: int) -> MatchedScan:
    calls = tuple(
        Call(score, volume, tuple(centre), tuple(hits), ignored)
        for score, volume, centre, hits, ignored in tree["candidates"]
    )
    return MatchedScan(tree["patient"], f"seed {seed}", tuple(tree["lesions_mm3"]), calls)
