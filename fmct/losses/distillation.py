"""Distillation of a classifier: softened targets of a teacher beside the labels (Hinton, Vinyals, Dean, 2015)."""

import torch
from torch import Tensor
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.losses.precision import as_float, full_precision
from fmct.losses.term import mean_term


def distillation_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float) -> Tensor:
    """Return α T² KL(softmax(teacher / T) ‖ softmax(student / T)) + (1 − α) CE(student, labels), a scalar.

    student, teacher: (N, K) logits, never probabilities: a teacher that ends in a sigmoid says almost nothing once it
    is softened. One column (N, 1) is the logit of class 1 against a class 0 of logit 0. labels: (N,) classes; a
    negative one (or NaN) is unknown and leaves only the first part. The KL is summed over classes. Each part is the
    mean over its own samples, on all ranks: this returns the rank's share. Only the student receives gradient. Raises
    ConfigError for shapes that do not fit, a temperature ≤ 0 or an alpha outside [0, 1].
    """
    if student.ndim != 2 or student.shape != teacher.shape or labels.shape != student.shape[:1]:
        raise ConfigError(
            "distillation: expected logits of one shape (N, K) on both sides and labels (N,); got "
            f"{tuple(student.shape)}, {tuple(teacher.shape)} and {tuple(labels.shape)}."
        )
    if temperature <= 0 or not 0 <= alpha <= 1:
        raise ConfigError(f"distillation: expected temperature > 0 and 0 ≤ alpha ≤ 1; got {temperature} and {alpha}.")
    with full_precision(student):
        z, wanted = _two_classes(as_float(student)), _two_classes(as_float(teacher.detach()))
        ours = (z / temperature).log_softmax(1)
        theirs = (wanted / temperature).log_softmax(1)
        divergence = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
        soft = mean_term(divergence, torch.ones_like(divergence)).loss
        known = labels.to(z.device) >= 0
        classes = torch.where(known, labels.to(z.device), 0).long()
        hard = mean_term(functional.cross_entropy(z, classes, reduction="none"), known.to(z.dtype)).loss
        return alpha * temperature**2 * soft + (1 - alpha) * hard


def _two_classes(logits: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits
