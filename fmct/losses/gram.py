"""Gram anchoring: keep the similarities between patches near those of an earlier teacher (DINOv3, 2025)."""

from typing import Literal

from torch import Tensor
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.losses.precision import as_float, full_precision

Level = Literal["image", "batch"]
Negatives = Literal["keep", "clip", "clip-teacher"]


def gram_loss(student: Tensor, teacher: Tensor, *, level: Level = "image", negatives: Negatives = "keep") -> Tensor:
    """Return the mean squared difference of two matrices of cosine similarities between patches, a scalar.

    student, teacher: (B, N, E) patch features; only the student receives gradient. level: one N × N matrix an image, or
    one (B·N) × (B·N) matrix for the rank's batch. negatives: keep negative similarities, clip them to 0 on both sides,
    or on the teacher's alone together with the student's where both are negative. Raises ConfigError for other words.
    """
    if student.shape != teacher.shape:
        raise ConfigError(f"Gram anchoring needs equal shapes; got {tuple(student.shape)} and {tuple(teacher.shape)}.")
    if level not in ("image", "batch") or negatives not in ("keep", "clip", "clip-teacher"):
        raise ConfigError(
            f"gram: level {level!r} is image or batch, negatives {negatives!r} is keep, clip or clip-teacher."
        )
    with full_precision(student):
        similar = _similarities(student, level)
        wanted = _similarities(teacher.detach(), level)
        if negatives == "clip":
            similar, wanted = similar.clamp(min=0), wanted.clamp(min=0)
        elif negatives == "clip-teacher":
            similar = similar.masked_fill((similar < 0) & (wanted < 0), 0)
            wanted = wanted.clamp(min=0)
        return functional.mse_loss(similar, wanted)


def _similarities(features: Tensor, level: Level) -> Tensor:
    """Return cosine similarities: (B, N, N) or (B·N, B·N)."""
    unit = functional.normalize(as_float(features), dim=-1)
    if level == "batch":
        unit = unit.flatten(0, 1)
    return unit @ unit.transpose(-1, -2)
