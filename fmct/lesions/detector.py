"""A trained detector as one thing: from a volume to its candidates, each with scores, verdict and reason."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fmct.config import build, plain
from fmct.errors import ArtefactError, DataError
from fmct.lesions.candidates import REMOVED, Candidate, find_candidates
from fmct.lesions.cleanup import CleanupRules, clean
from fmct.lesions.detection import judge, voxel_probability
from fmct.lesions.preparation import PreparationConfig, Prepared, prepare
from fmct.lesions.settings import EvaluateConfig, LesionConfig
from fmct.models.adaptation import EncoderHolder
from fmct.models.lesion_segmenter import LesionNetworkConfig
from fmct.normalise import check_sign
from fmct.shapes import triple
from fmct.tasks.lesion_proposal import build_network, describe_network
from fmct.volume import Volume

_STRETCH = 1.5


@dataclass(frozen=True)
class DetectorRecord:
    """What a detector is, beside its weights. threshold, overlap, connectivity: of candidates; student_threshold: of
    the student's probability. Patches are voxels (z, y, x). match: what counts as found, as its run was judged.
    spacing_mm: the smallest and the largest voxel sides (z, y, x) that it was trained on; empty where unknown.
    """

    lesion_sign: str
    target: str = "lesion"
    prepare: PreparationConfig = field(default_factory=PreparationConfig)
    detector: LesionNetworkConfig = field(default_factory=LesionNetworkConfig)
    student: LesionNetworkConfig = field(default_factory=LesionNetworkConfig)
    detector_patch: list[int] = field(default_factory=lambda: [32, 32, 32])
    student_patch: list[int] = field(default_factory=lambda: [24, 24, 24])
    threshold: float = 0.2
    overlap: float = 0.25
    connectivity: int = 26
    student_threshold: float = 0.5
    clean: CleanupRules = field(default_factory=CleanupRules)
    match: EvaluateConfig = field(default_factory=EvaluateConfig)
    spacing_mm: list[list[float]] = field(default_factory=list)

    @classmethod
    def of(cls, config: LesionConfig, spacing_mm: list[list[float]] | None = None) -> "DetectorRecord":
        """Return the record of a run's configuration; paths stay behind."""
        prepare_tree = {**plain(config.prepare), "brain_masks": ""}
        return cls(
            lesion_sign=check_sign(config.lesion_sign),
            target=config.data.targets[0] if config.data.targets else "lesion",
            prepare=build(PreparationConfig, prepare_tree, "prepare"),
            detector=config.propose.network,
            student=config.discriminate.student,
            detector_patch=list(config.propose.training.patch),
            student_patch=list(config.discriminate.student_training.patch),
            threshold=config.propose.threshold,
            overlap=config.propose.overlap,
            connectivity=config.propose.connectivity,
            student_threshold=config.discriminate.threshold,
            clean=config.clean,
            match=replace(config.evaluate, split="", ignore=""),
            spacing_mm=[[round(side, 4) for side in sides] for sides in spacing_mm or []],
        )

    @classmethod
    def from_tree(cls, tree: dict[str, Any], where: str) -> "DetectorRecord":
        """Return the record of `plain`'s tree. Raises ArtefactError."""
        try:
            return build(cls, tree, where)
        except Exception as error:
            raise ArtefactError(f"{where}: not a usable description of a detector ({error}).") from None

    def networks(self) -> tuple[EncoderHolder, EncoderHolder]:
        """Return (detector, student), untrained."""
        return (
            build_network(describe_network(self.detector, voxels=True, patch=False)),
            build_network(describe_network(self.student, voxels=False, patch=True)),
        )


@dataclass(frozen=True)
class Found:
    """What came of one series: the prepared series, the label map on its grid, and the candidates with verdicts."""

    prepared: Prepared
    labels: np.ndarray
    candidates: list[Candidate]

    @property
    def kept(self) -> list[Candidate]:
        """The candidates that are called lesions."""
        return [candidate for candidate in self.candidates if candidate.verdict != REMOVED]


class LesionDetector:
    """Networks, thresholds and rules, in evaluation mode."""

    def __init__(
        self,
        record: DetectorRecord,
        detector: EncoderHolder,
        student: EncoderHolder,
        *,
        facts: dict[str, Any] | None = None,
        fingerprint: str = "",
        device: torch.device | str = "cpu",
    ) -> None:
        self.record, self.facts, self.fingerprint, self.device = record, dict(facts or {}), fingerprint, device
        self.detector = detector.eval().requires_grad_(False).to(device)
        self.student = student.eval().requires_grad_(False).to(device)

    def find(
        self, volume: Volume, *, brain: Volume | None = None, patient: str = "", series: str = "", split: str = ""
    ) -> Found:
        """Return what is found in a volume. Raises DataError as `prepare` does, and for voxels of another size."""
        record = self.record
        where = f"series {series}" if series else "this series"
        prepared = prepare(volume, record.prepare, sign=record.lesion_sign, brain=brain, where=where)
        check_spacing(prepared.spacing_mm, record.spacing_mm, where)
        size = triple(record.detector_patch, "detector_patch")
        probability = voxel_probability(self.detector, prepared, size=size, overlap=record.overlap, device=self.device)
        labels, candidates = find_candidates(
            probability, prepared.affine, threshold=record.threshold, connectivity=record.connectivity,
            patient=patient, series=series, split=split,
        )  # fmt: skip
        size = triple(record.student_patch, "student_patch")
        scores = judge(self.student, prepared, candidates, size=size, device=self.device)
        judged = [
            c.judged(score, threshold=record.student_threshold) for c, score in zip(candidates, scores, strict=True)
        ]
        return Found(prepared, labels, clean_candidates(judged, labels, prepared, record.clean))


def check_spacing(sides: Sequence[float], trained: Sequence[Sequence[float]], where: str) -> None:
    """Raise DataError for voxels whose sides (mm) lie beyond what was trained on by more than half as much again."""
    if not trained:
        return
    for axis, side, low, high in zip("zyx", sides, *trained, strict=True):
        if not low / _STRETCH <= side <= high * _STRETCH:
            raise DataError(
                f"{where}: voxels of {side:.3g} mm along {axis}; this detector was trained on {low:.3g} to {high:.3g} "
                "mm, and its patches are voxels: a lesion of this series has another size in them. Resample the "
                "series, or train with prepare.spacing_mm, a working grid of one size."
            )


def clean_candidates(
    candidates: list[Candidate], labels: np.ndarray, prepared: Prepared, rules: CleanupRules
) -> list[Candidate]:
    """Return a series' candidates with verdicts: those that the discriminator left go through the clean-up."""
    left = [c for c in candidates if c.verdict != REMOVED]
    numbers = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.int32)
    for c in left:
        numbers[c.candidate] = c.candidate
    vessels = prepared.vessels if prepared.vessels.any() else None
    scores = {c.candidate: c.discriminator_score for c in left}
    _, verdicts = clean(numbers[labels], prepared.brain, prepared.spacing_mm, rules, scores=scores, vessels=vessels)
    fate = {verdict.label: verdict for verdict in verdicts}
    return [
        c if c.verdict == REMOVED else c.decided(fate[c.candidate].kept, fate[c.candidate].reason) for c in candidates
    ]
