"""The stages in order, each from what the one before left in the run folder.

prepared/  a series each, as the networks see it                      (normalise)
detector/  a run; proposed/ label maps and candidates.csv             (propose)
teacher/, student/  runs; judged/candidates.csv                       (discriminate)
cleaned/candidates.csv                                                (clean)
report/    report.html, table.md, results.json                        (evaluate)
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmct import distributed
from fmct.data.lesion_patches import Item
from fmct.errors import ConfigError, DataError
from fmct.lesions.candidates import (
    REMOVED,
    Candidate,
    find_candidates,
    read_candidates,
    write_candidates,
)
from fmct.lesions.detection import judge, voxel_probability
from fmct.lesions.detector import clean_candidates
from fmct.lesions.networks import build_detector, build_student, build_teacher, with_encoder
from fmct.lesions.phase import patch_size, train_phase, trained, weights_of
from fmct.lesions.preparation import PreparationConfig, Prepared
from fmct.lesions.prepared_series import PreparedSeries
from fmct.lesions.reporting import Case, report
from fmct.lesions.settings import LesionConfig
from fmct.lesions.stages import chosen, stage_folders
from fmct.lesions.standard_scale import fitted_to, keep, kept
from fmct.lesions.subjects import Subject, of_split
from fmct.lesions.training_patches import TrainingPatches
from fmct.models.adaptation import EncoderHolder
from fmct.normalise import check_sign
from fmct.tasks.lesion_discrimination import Student, Teacher
from fmct.tasks.lesion_proposal import LesionProposal
from fmct.train.session import Options


class Pipeline:
    """A detector's run folder. Each stage checks what it needs, and does nothing where its outputs are up to date."""

    def __init__(
        self, config: LesionConfig, subjects: Sequence[Subject], *, options: Options, device: torch.device
    ) -> None:
        if distributed.world_size() > 1:
            raise ConfigError("this recipe runs on one process: its networks are small. Leave out --nproc.")
        check_sign(config.lesion_sign)
        config, self._encoder = with_encoder(config)
        self.config, self.subjects, self.options, self.device = config, list(subjects), options, device
        self.folder = Path(config.output)
        self.stages = stage_folders(config, self.subjects)
        self.series = PreparedSeries(
            self.stages["prepared"].path, self.subjects, config.prepare, sign=config.lesion_sign
        )
        if self.stages["prepared"].done:
            self._take(kept(self.stages["prepared"].path, config.prepare))

    def run(self, stage: str = "all") -> None:
        """Run one stage, or all that are left. Raises ArtefactError when one before it is missing."""
        for name in chosen(stage):
            getattr(self, name)()

    def normalise(self) -> None:
        """Prepare every series."""
        stage = self.stages["prepared"]
        if stage.done:
            return
        folder, config = stage.begin(keep=True), self.config
        fitted = fitted_to(config.prepare, of_split(self.subjects, config.train_split), sign=config.lesion_sign)
        if fitted is not config.prepare:
            keep(folder, fitted)
            self._take(fitted)
        self.series.make()
        stage.finish(series=len(self.subjects))

    def propose(self) -> None:
        """Train the detector, and find every series' candidates."""
        self.stages["prepared"].need()
        config, detector, stage = self.config.propose, self.folder / "detector", self.stages["proposed"]
        if stage.done:
            return
        task = LesionProposal(build_detector(config, self.config.seed, encoder=self._encoder), config.objective)
        doubt = {key: str(value) for key, value in stage.inputs.items() if key == "ignored"}
        patches = self._patches()
        train_phase(
            detector, task, self.config, config.training, settings=config,
            sampler=patches.for_detector(config, partial(self._mined, patches, task)),
            arrays=self.series.arrays, corpus={"prepared": self.stages["prepared"].fingerprint, **doubt},
            options=self.options, device=self.device,
        )  # fmt: skip
        network, folder = self.detector(), stage.begin()
        found: list[Candidate] = []
        for subject in self.subjects:
            labels, candidates = self._propose(network, subject)
            np.savez_compressed(folder / f"{subject.series}.npz", labels=labels)
            found += candidates
        write_candidates(folder / "candidates.csv", found)
        stage.finish(candidates=len(found), weights=weights_of(detector))

    def discriminate(self) -> None:
        """Train teacher and student on the training series' candidates, and judge every candidate."""
        proposed, stage, config = self.stages["proposed"].need(), self.stages["judged"], self.config.discriminate
        if stage.done:
            return
        candidates = read_candidates(proposed / "candidates.csv")
        size = patch_size(config.student_training)
        own = partial(self._own, candidates)
        of_teacher, of_student = self._patches().for_judges(config, lambda s: (self.labels(s), own(s)))
        corpus = {"proposed": self.stages["proposed"].fingerprint, "weights": weights_of(self.folder / "detector")}
        settings: dict[str, Any] = {
            "arrays": self.series.arrays,
            "corpus": corpus,
            "options": self.options,
            "device": self.device,
        }
        if config.distil.listens:
            teacher = Teacher(build_teacher(config, self.config.seed), config.objective)
            train_phase(
                self.folder / "teacher", teacher, self.config, config.teacher_training, settings=_of_teacher(config),
                sampler=of_teacher, **settings,
            )  # fmt: skip
            settings["corpus"] = {**corpus, "teacher": weights_of(self.folder / "teacher")}
        student = Student(
            build_student(config, self.config.seed),
            self.teacher() if config.distil.listens else build_teacher(config, self.config.seed),
            config.distil,
            config.student_objective,
        )
        train_phase(
            self.folder / "student", student, self.config, config.student_training, settings=config,
            sampler=of_student, **settings,
        )  # fmt: skip
        network, folder = self.student(), stage.begin()
        judged: list[Candidate] = []
        for subject in self.subjects:
            mine = own(subject)
            scores = judge(network, self.prepared(subject), mine, size=size, device=self.device)
            judged += [c.judged(score, threshold=config.threshold) for c, score in zip(mine, scores, strict=True)]
        write_candidates(folder / "candidates.csv", judged)
        stage.finish(candidates=len(judged), weights=weights_of(self.folder / "student"))

    def clean(self) -> None:
        """Give every candidate that is left its verdict."""
        judged, stage = self.stages["judged"].need(), self.stages["cleaned"]
        if stage.done:
            return
        candidates, folder = read_candidates(judged / "candidates.csv"), stage.begin()
        found: list[Candidate] = []
        for subject in self.subjects:
            mine = self._own(candidates, subject)
            found += clean_candidates(mine, self.labels(subject), self.prepared(subject), self.config.clean)
        write_candidates(folder / "candidates.csv", found)
        stage.finish(kept=sum(c.verdict != REMOVED for c in found))

    def evaluate(self) -> None:
        """Write the report of the split to evaluate. Raises DataError when none of its series has known lesions."""
        cleaned, stage, split = self.stages["cleaned"].need(), self.stages["report"], self.config.evaluate.split
        if stage.done:
            print((stage.path / "table.md").read_text(encoding="utf-8"))
            return
        subjects = of_split(self.subjects, split)
        known = [subject for subject in subjects if self.prepared(subject).known]
        if not known:
            raise DataError(
                f"split {split!r}: none of its {len(subjects)} series has a mask of lesions to evaluate with."
            )
        folder = stage.begin()
        candidates = read_candidates(cleaned / "candidates.csv")
        config = self.config
        cases = [self.case(subject, candidates) for subject in known]
        print(
            report(folder, cases, config.evaluate, title=config.title, lesion_sign=config.lesion_sign, seed=config.seed)
        )
        stage.finish(series=len(known))

    def detector(self) -> EncoderHolder:
        """Return the trained detector."""
        network = build_detector(self.config.propose, self.config.seed)
        return trained(self.folder / "detector", network).to(self.device)

    def teacher(self) -> EncoderHolder:
        """Return the trained teacher."""
        network = build_teacher(self.config.discriminate, self.config.seed)
        return trained(self.folder / "teacher", network).to(self.device)

    def student(self) -> EncoderHolder:
        """Return the trained student."""
        network = build_student(self.config.discriminate, self.config.seed)
        return trained(self.folder / "student", network).to(self.device)

    def prepared(self, subject: Subject) -> Prepared:
        """Return a series as the networks see it."""
        return self.series.of(subject)

    def trained_spacing(self) -> list[list[float]]:
        """Return the smallest and the largest voxel sides (z, y, x) in mm of the training series, [] of none."""
        return self.series.sides(of_split(self.subjects, self.config.train_split))

    def case(self, subject: Subject, candidates: Sequence[Candidate]) -> Case:
        """Return a series to judge, with its own of the candidates."""
        found, mine = self.prepared(subject), self._own(candidates, subject)
        return Case(
            subject.patient, subject.series, found.lesions, self.labels(subject), mine, found.spacing_mm,
            image=found.channels[0], shown=found.brain, ignore=self.series.doubtful(subject),
        )  # fmt: skip

    def labels(self, subject: Subject) -> np.ndarray:
        """Return the label map of a series' candidates, on its prepared grid."""
        with np.load(self.stages["proposed"].path / f"{subject.series}.npz", allow_pickle=False) as kept:
            return kept["labels"]

    def _take(self, prepare: PreparationConfig) -> None:
        """Go on with a preparation whose normalisation was fitted."""
        self.config = replace(self.config, prepare=prepare)
        self.series.config = prepare

    def _patches(self) -> TrainingPatches:
        return TrainingPatches(self.series, self.config.train_split, seed=self.config.seed)

    @staticmethod
    def _own(candidates: Sequence[Candidate], subject: Subject) -> list[Candidate]:
        return [c for c in candidates if c.series == subject.series]

    def _propose(self, network: EncoderHolder, subject: Subject) -> tuple[np.ndarray, list[Candidate]]:
        config, prepared = self.config.propose, self.prepared(subject)
        probability = voxel_probability(
            network, prepared, size=patch_size(config.training), overlap=config.overlap, device=self.device
        )
        return find_candidates(
            probability, prepared.affine, threshold=config.threshold, connectivity=config.connectivity,
            patient=subject.patient, series=subject.series, split=subject.split,
        )  # fmt: skip

    def _mined(self, patches: TrainingPatches, task: LesionProposal, number: int) -> list[Item]:
        """Return a round's hard negatives, of the detector as it stands at that update."""
        path = self.folder / "detector" / f"mined-{number}.json"
        task.network.eval()
        found = patches.mine(path, number, partial(self._propose, task.network), self.config.propose)
        task.network.train()
        return found


def _of_teacher(config: Any) -> Any:
    """Return the settings that the teacher depends on: the student's own put aside."""
    empty = type(config)()
    return replace(
        config, student=empty.student, student_objective=empty.student_objective, distil=empty.distil,
        student_training=config.teacher_training, threshold=empty.threshold,
    )  # fmt: skip
