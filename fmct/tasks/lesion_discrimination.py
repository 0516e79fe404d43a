"""Discrimination of candidates: a teacher that also segments, and a student that learns its judgement.

Teacher: L = L_seg + L_cls. Student: L = L_cls + L_KD, with L_KD = α T² KL(teacher ‖ student) + (1 − α) CE on logits of
both (Sundaresan et al. 2023; Hinton et al. 2015), and, if wished, 1 − cosine of pooled features. L_cls has the form of
the voxels' loss: cross-entropy with a weight on positives, and Dice over the batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fmct.data.lesion_patches import PatchBatch
from fmct.errors import ConfigError
from fmct.losses.distillation import distillation_loss
from fmct.losses.lesions import dice_loss, feature_loss, weighted_cross_entropy
from fmct.losses.term import Term
from fmct.models.adaptation import EncoderHolder
from fmct.tasks.lesion_proposal import VoxelObjective, voxel_terms
from fmct.tasks.supervised import SupervisedTask, weighted
from fmct.train.task import TaskOutput

TEACHER_OUTPUTS = ("logits", "legacy_sigmoid")


@dataclass(frozen=True)
class PatchObjective:
    """The loss of a patch's class. positive_weight: of positives in the cross-entropy; ce_weighting: see
    VoxelObjective. target: `overlap` (the candidate is a lesion) or `any` (a lesion voxel is anywhere in the patch).
    """

    cross_entropy: float = 1.0
    dice: float = 1.0
    positive_weight: float = 1.0
    ce_weighting: str = "voxel"
    target: str = "overlap"

    def __post_init__(self) -> None:
        if self.target not in ("overlap", "any"):
            raise ConfigError(f"patch target: expected overlap or any, got {self.target!r}.")


@dataclass(frozen=True)
class DistillationConfig:
    """How a student learns from the teacher. temperature T and alpha α of L_KD; alpha 0 switches the teacher off.
    features: weight of 1 − cosine of pooled features, 0 for none. teacher_output: `logits`, or `legacy_sigmoid`: the
    published error, probabilities taken as logits, which say almost nothing once they are softened.
    """

    temperature: float = 4.0
    alpha: float = 0.4
    features: float = 0.0
    teacher_output: str = "logits"

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 <= self.alpha <= 1 or self.features < 0:
            raise ConfigError(f"distil: expected temperature > 0, alpha in [0, 1] and features ≥ 0; got {self}.")
        if self.teacher_output not in TEACHER_OUTPUTS:
            raise ConfigError(f"distil.teacher_output: expected one of {', '.join(TEACHER_OUTPUTS)}.")

    @property
    def listens(self) -> bool:
        """Whether the teacher plays a part."""
        return self.alpha > 0 or self.features > 0


@dataclass(frozen=True)
class TeacherObjective:
    """L_seg and L_cls with their weights."""

    voxels: VoxelObjective = field(default_factory=VoxelObjective)
    patch: PatchObjective = field(default_factory=PatchObjective)
    segmentation: float = 1.0
    classification: float = 1.0


class Teacher(SupervisedTask):
    """Train a network with a voxel head and a patch head."""

    def __init__(self, network: EncoderHolder, objective: TeacherObjective | None = None) -> None:
        super().__init__(network)
        self.objective = objective or TeacherObjective()

    def forward(self, batch: PatchBatch, values: Mapping[str, float]) -> TaskOutput:
        """Return L_seg + L_cls of a batch; `values` play no part."""
        del values
        output, wanted = self.network(batch.volumes, batch.spacing), self.objective
        voxels = voxel_terms(output.voxels, batch.mask, wanted.voxels)
        patch = patch_terms(output.patch, batch, wanted.patch)
        terms = {f"voxel_{k}": t for k, t in voxels.items()} | {f"patch_{k}": t for k, t in patch.items()}
        weights = {
            "voxel_cross_entropy": wanted.segmentation * wanted.voxels.cross_entropy,
            "voxel_dice": wanted.segmentation * wanted.voxels.dice,
            "patch_cross_entropy": wanted.classification * wanted.patch.cross_entropy,
            "patch_dice": wanted.classification * wanted.patch.dice,
        }
        return weighted(terms, weights, samples=batch.entries)


class Student(SupervisedTask):
    """Train a patch network beside a frozen teacher.

    The teacher is held outside the registered modules: it is neither trained nor saved, and stays in evaluation mode,
    so that its buffers do not move. With features distilled, `project` (trained) leads to the teacher's width.
    """

    def __init__(
        self,
        network: EncoderHolder,
        teacher: EncoderHolder,
        config: DistillationConfig | None = None,
        objective: PatchObjective | None = None,
    ) -> None:
        super().__init__(network)
        self.config, self.objective = config or DistillationConfig(), objective or PatchObjective()
        self._teacher = [teacher.eval().requires_grad_(False)]
        widths = [int(part.features) for part in (network, teacher)]  # type: ignore[arg-type]
        self.project = nn.Linear(widths[0], widths[1]) if self.config.features else nn.Identity()

    @property
    def teacher(self) -> EncoderHolder:
        """The frozen teacher."""
        return self._teacher[0]

    def forward(self, batch: PatchBatch, values: Mapping[str, float]) -> TaskOutput:
        """Return L_cls + L_KD (+ features) of a batch; `values` play no part."""
        del values
        config, output = self.config, self.network(batch.volumes, batch.spacing)
        terms = {f"patch_{k}": t for k, t in patch_terms(output.patch, batch, self.objective).items()}
        weights = {"patch_cross_entropy": self.objective.cross_entropy, "patch_dice": self.objective.dice}
        count = torch.tensor(float(len(batch.entries)), device=output.patch.device)
        taught = self._taught(batch, output.patch)
        labels = target_of(batch, self.objective).long()
        loss = distillation_loss(output.patch, taught[0], labels, config.temperature, config.alpha)
        terms["distillation"], weights["distillation"] = Term(loss, count), 1.0
        if config.features:
            terms["features"] = Term(feature_loss(self.project(output.features), taught[1]), count)
            weights["features"] = config.features
        return weighted(terms, weights, samples=batch.entries)

    @torch.no_grad()
    def _taught(self, batch: PatchBatch, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the teacher's (logits, features) of a batch."""
        if not self.config.listens:
            return torch.zeros_like(like), like
        teacher = self.teacher.to(like.device)
        output = teacher(batch.volumes, batch.spacing)
        logits = output.patch.float()
        return (logits.sigmoid() if self.config.teacher_output == "legacy_sigmoid" else logits), output.features


def target_of(batch: PatchBatch, objective: PatchObjective) -> Tensor:
    """Return (B,) what a patch should be called, 0 or 1."""
    return batch.positive if objective.target == "any" else batch.wanted


def patch_terms(logits: Tensor, batch: PatchBatch, objective: PatchObjective) -> dict[str, Term]:
    """Return the terms `cross_entropy` and `dice` of patch logits (B, 2)."""
    truth = target_of(batch, objective)
    margin = logits[:, 1] - logits[:, 0]
    weights = 1 + (objective.positive_weight - 1) * truth
    count = torch.tensor(float(len(truth)), device=logits.device)
    entropy = weighted_cross_entropy(margin, truth, weights, weighting=objective.ce_weighting)
    return {"cross_entropy": Term(entropy, count), "dice": Term(dice_loss(margin, truth), count)}
