"""The stages in order, each from what the one before left in the run folder.

prepared/  a series each, as the networks see it                      (normalise)
detector/  a run; proposed/ label maps and candidates.csv             (propose)
teacher/, student/  runs; judged/candidates.csv                       (discriminate)
cleaned/candidates.csv                                                (clean)
report/    report.html, table.md, results.json                        (evaluate)
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmct import distributed
from fmct.artefacts import read_json, write_json
from fmct.config import plain
from fmct.data.lesion_patches import Arrays, Item, PatchSampler
from fmct.data.mask_files import mask_on_grid
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
from fmct.lesions.items import (
    candidate_items,
    hard_items,
    items_of_tree,
    items_tree,
    lesion_items,
    tile_items,
    without_doubt,
)
from fmct.lesions.networks import build_detector, build_student, build_teacher, with_encoder
from fmct.lesions.phase import patch_size, train_phase, trained, weights_of
from fmct.lesions.preparation import (
    PreparationConfig,
    Prepared,
    load_prepared,
    prepare,
    save_prepared,
    spacing_of,
)
from fmct.lesions.reporting import Case, report
from fmct.lesions.settings import LesionConfig
from fmct.lesions.stages import chosen, digest, stage_folders
from fmct.lesions.standard_scale import fitted_to, keep, kept
from fmct.lesions.subjects import Subject, of_split
from fmct.models.adaptation import EncoderHolder
from fmct.normalise import check_sign
from fmct.shapes import Triple
from fmct.tasks.lesion_discrimination import Student, Teacher
from fmct.tasks.lesion_proposal import LesionProposal
from fmct.train.session import Options

ITEMS = ("fmct-lesion-items", "1.0")
_KEPT = 64  # prepared series in memory


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
        self._cache: OrderedDict[str, Prepared] = OrderedDict()
        self.stages = stage_folders(config, self.subjects)
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
        for subject in self.subjects:
            if not self._prepared_file(subject).is_file():
                source = subject.read()
                found = prepare(
                    source.volume, self.config.prepare, sign=self.config.lesion_sign, brain=source.brain,
                    lesions=source.lesions, where=f"series {subject.series}",
                )  # fmt: skip
                save_prepared(self._prepared_file(subject), found)
        wanted = {self._prepared_file(subject).name for subject in self.subjects}
        for path in folder.glob("*.npz"):
            if path.name not in wanted:
                path.unlink()
        stage.finish(series=len(self.subjects))

    def propose(self) -> None:
        """Train the detector, and find every series' candidates."""
        self.stages["prepared"].need()
        config, detector, stage = self.config.propose, self.folder / "detector", self.stages["proposed"]
        if stage.done:
            return
        task = LesionProposal(build_detector(config, self.config.seed, encoder=self._encoder), config.objective)
        doubt = {key: str(value) for key, value in stage.inputs.items() if key == "ignored"}
        train_phase(
            detector, task, self.config, config.training, settings=config, sampler=self._proposal_sampler(task),
            arrays=self._arrays, corpus={"prepared": self.stages["prepared"].fingerprint, **doubt},
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
        own, every = [], []
        for subject in self._train:
            own += self._sure(subject, self._candidate_items(subject, candidates), size)
            every += self._sure(subject, tile_items(subject.series, self.prepared(subject), size, positives=True), size)
        mixed = self._sampler(own, every, config.student_training.negatives)
        corpus = {"proposed": self.stages["proposed"].fingerprint, "weights": weights_of(self.folder / "detector")}
        settings: dict[str, Any] = {
            "arrays": self._arrays,
            "corpus": corpus,
            "options": self.options,
            "device": self.device,
        }
        if config.distil.listens:
            teacher = Teacher(build_teacher(config, self.config.seed), config.objective)
            sampler = mixed
            if config.teacher_items == "tiles":
                sampler = self._sampler([], every, config.teacher_training.negatives, positives=True)
            train_phase(
                self.folder / "teacher", teacher, self.config, config.teacher_training, settings=_of_teacher(config),
                sampler=sampler, **settings,
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
            sampler=mixed, **settings,
        )  # fmt: skip
        network, folder = self.student(), stage.begin()
        judged: list[Candidate] = []
        for subject in self.subjects:
            mine = [c for c in candidates if c.series == subject.series]
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
            mine = [c for c in candidates if c.series == subject.series]
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
        if subject.series not in self._cache:
            self._cache[subject.series] = load_prepared(self._prepared_file(subject))
            while len(self._cache) > _KEPT:
                self._cache.popitem(last=False)
        self._cache.move_to_end(subject.series)
        return self._cache[subject.series]

    def trained_spacing(self) -> list[list[float]]:
        """Return the smallest and the largest voxel sides (z, y, x) in mm of the training series, [] of none."""
        subjects = of_split(self.subjects, self.config.train_split)
        sides = np.array([spacing_of(self._prepared_file(subject)) for subject in subjects])
        return [sides.min(axis=0).tolist(), sides.max(axis=0).tolist()] if subjects else []

    def case(self, subject: Subject, candidates: Sequence[Candidate]) -> Case:
        """Return a series to judge, with its own of the candidates."""
        found = self.prepared(subject)
        mine = [c for c in candidates if c.series == subject.series]
        return Case(
            subject.patient, subject.series, found.lesions, self.labels(subject), mine, found.spacing_mm,
            image=found.channels[0], shown=found.brain, ignore=self._doubtful(subject),
        )  # fmt: skip

    def labels(self, subject: Subject) -> np.ndarray:
        """Return the label map of a series' candidates, on its prepared grid."""
        with np.load(self.stages["proposed"].path / f"{subject.series}.npz", allow_pickle=False) as kept:
            return kept["labels"]

    def _take(self, prepare: PreparationConfig) -> None:
        """Go on with a preparation whose normalisation was fitted."""
        self.config = replace(self.config, prepare=prepare)

    @property
    def _train(self) -> list[Subject]:
        found = of_split(self.subjects, self.config.train_split)
        if not found:
            splits = ", ".join(sorted({subject.split for subject in self.subjects})) or "none"
            raise DataError(f"no series in the split {self.config.train_split!r}; splits with some: {splits}.")
        unknown = [subject.series for subject in found if not self.prepared(subject).known]
        if unknown:
            raise DataError(
                f"training series without a mask of lesions: {', '.join(unknown[:8])}. Whether a voxel is one is then "
                "not known: give an empty mask where there is none, or leave them out of the split."
            )
        return found

    def _doubtful(self, subject: Subject) -> np.ndarray | None:
        """Return the regions of a series that count neither way, bool on its prepared grid, or None."""
        region, found = subject.ignored(), self.prepared(subject)
        return None if region is None else mask_on_grid(region, found.brain.shape, found.affine) > 0

    def _sure(self, subject: Subject, items: Sequence[Item], size: Triple) -> list[Item]:
        return without_doubt(items, self._doubtful(subject), size)

    def _prepared_file(self, subject: Subject) -> Path:
        made = digest([subject.key, plain(self.config.prepare), self.config.lesion_sign])
        return self.stages["prepared"].path / f"{subject.series}-{made}.npz"

    def _arrays(self, series: str) -> Arrays:
        return self.prepared(next(subject for subject in self.subjects if subject.series == series)).arrays

    def _propose(self, network: EncoderHolder, subject: Subject) -> tuple[np.ndarray, list[Candidate]]:
        config, prepared = self.config.propose, self.prepared(subject)
        probability = voxel_probability(
            network, prepared, size=patch_size(config.training), overlap=config.overlap, device=self.device
        )
        return find_candidates(
            probability, prepared.affine, threshold=config.threshold, connectivity=config.connectivity,
            patient=subject.patient, series=subject.series, split=subject.split,
        )  # fmt: skip

    def _proposal_sampler(self, task: LesionProposal) -> Any:
        """Return sampler(draw), which adds mined negatives when a draw of a new round is first asked for."""
        config, size = self.config.propose, patch_size(self.config.propose.training)
        items: list[Item] = []
        for subject in self._train:
            prepared = self.prepared(subject)
            items += [] if config.positives == "tiles" else lesion_items(subject.series, prepared)
            tiles = tile_items(subject.series, prepared, size, positives=config.positives == "tiles")
            items += self._sure(subject, tiles, size)
        every = max(1, config.training.steps // (config.mining + 1)) * config.training.batch_size
        made: dict[int, PatchSampler] = {}

        def sampler(draw: int) -> PatchSampler:
            """Return the sampler of a draw's round."""
            number = min(draw // every, config.mining)
            if number not in made:
                hard = self._mined(task, number) if number else []
                made[number] = PatchSampler(
                    items, seed=self.config.seed, negatives=config.training.negatives, hard=hard,
                    hard_share=config.hard_share, subjects=[s.series for s in self._train],
                )  # fmt: skip
            return made[number]

        sampler(0)  # an unusable training set is refused before anything is trained
        return sampler

    def _mined(self, task: LesionProposal, number: int) -> list[Item]:
        """Return a round's hard negatives: of its file, else of the detector as it stands at that update."""
        path = self.folder / "detector" / f"mined-{number}.json"
        if path.is_file():
            return items_of_tree(read_json(path, *ITEMS)["items"])
        task.network.eval()
        found: list[Item] = []
        for subject in self._train:
            labels, candidates = self._propose(task.network, subject)
            config = self.config.propose
            hard = hard_items(subject.series, self.prepared(subject), labels, candidates)
            found += self._sure(subject, hard, patch_size(config.training))[: config.mined]
        task.network.train()
        write_json(path, *ITEMS, {"round": number, "items": items_tree(found)})
        return found

    def _candidate_items(self, subject: Subject, candidates: Sequence[Candidate]) -> list[Item]:
        mine = [c for c in candidates if c.series == subject.series]
        return candidate_items(subject.series, self.prepared(subject), self.labels(subject), mine)

    def _sampler(self, own: Sequence[Item], tiles: Sequence[Item], negatives: int, *, positives: bool = False) -> Any:
        """Return the sampler of candidates; tissue free of lesions stands beside the false ones, and for them where the
        detector makes none. positives: tiles alone, those with lesions too.
        """
        items = [item for item in tiles if positives or not item.positive] + [item for item in own if item.positive]
        made = PatchSampler(
            items, seed=self.config.seed, negatives=negatives, hard=[item for item in own if not item.positive],
            hard_share=self.config.discriminate.hard_share, subjects=[s.series for s in self._train],
        )  # fmt: skip
        return lambda draw: made


def _of_teacher(config: Any) -> Any:
    """Return the settings that the teacher depends on: the student's own put aside."""
    empty = type(config)()
    return replace(
        config, student=empty.student, student_objective=empty.student_objective, distil=empty.distil,
        student_training=config.teacher_training, threshold=empty.threshold,
    )  # fmt: skip
