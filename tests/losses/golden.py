"""Inputs of the golden numbers: torch's CPU generator with seed 0, drawn in this order.

The expected values were computed with the original modules of DINOv2 and DINOv3 on these inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BATCH, PROTOTYPES, LOCAL = 4, 16, 6


@dataclass(frozen=True)
class Golden:
    """Teacher and student logits (2 global and 6 local views of 4 images), masks, patch logits, features."""

    teacher: Tensor
    student_global: Tensor
    student_local: Tensor
    mask: Tensor
    patch_student: Tensor
    patch_teacher: Tensor
    features: Tensor
    patches: Tensor
    anchor: Tensor


def golden_inputs() -> Golden:
    """Return the inputs, fp32."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    teacher, student_global, student_local = normal(8, 16), normal(8, 16), normal(24, 16)
    mask = torch.zeros(8, 27, dtype=torch.bool)
    for row, count in enumerate((5, 9, 13, 3)):
        mask[row, torch.randperm(27, generator=generator)[:count]] = True
    patch_student, patch_teacher, features = normal(30, 16), normal(30, 16), normal(8, 32)
    return Golden(
        teacher,
        student_global,
        student_local,
        mask,
        patch_student,
        patch_teacher,
        features,
        normal(2, 10, 8),
        normal(2, 10, 8),
    )
