"""DINO: cross-entropy between views of one image, with targets balanced by Sinkhorn-Knopp.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021; balancing after Caron et al.,
"Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020.
"""

import torch
from torch import Tensor

from fmct import distributed
from fmct.errors import ConfigError
from fmct.losses.precision import as_float, full_precision
from fmct.losses.soft_cross_entropy import soft_cross_entropy
from fmct.row_blocks import row_blocks


def dino_loss(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the mean cross-entropy over all pairs (teacher view t, student view v) with v ≠ t, a scalar.

    student: (V, B, K) logits, of which the first G views are those that the teacher saw. teacher: (G, B, K)
    probabilities. The mean runs over T pairs and the B images of this rank. Raises ConfigError when no pair is left.
    """
    views, seen = student.shape[0], teacher.shape[0]
    shared = min(views, seen)
    pairs = seen * views - shared
    if pairs == 0 or student.shape[1:] != teacher.shape[1:]:
        raise ConfigError(
            f"DINO compares different views of the same images: got student logits {tuple(student.shape)} and teacher "
            f"probabilities {tuple(teacher.shape)}, expected (V, B, K) and (G, B, K) with at least one pair v ≠ t."
        )
    with full_precision(student):
        # Σ_t Σ_v p_t·l_v minus the same-view pairs: view v is compared with the sum of the others' targets.
        every = as_float(teacher.detach()).sum(0)
        weights = every.new_full(every.shape[:1], 1 / (pairs * student.shape[1]))
        others = [every - as_float(teacher[view].detach()) if view < shared else every for view in range(views)]
        terms = [
            soft_cross_entropy(logits, aims, weights, temperature)
            for logits, aims in zip(student.unbind(), others, strict=True)
        ]
        return torch.stack(terms).sum()


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Return (M, K) probabilities whose prototypes are used about equally over the samples of all ranks.

    logits: (M, K); M may differ between ranks and be zero: every rank takes part in the collectives. Finite for any
    finite logits. Rows sum to 1; prototype mass is uniform only in the limit.

    The first round is in the log domain. After it a prototype that no sample liked has mass as well, at least 1 / (M K)
    of it over the M samples of all ranks, so that the others can scale rows and columns as they are.
    """
    with full_precision(logits):
        precision = torch.float64 if logits.dtype == torch.float64 else torch.float32
        masses = logits.to(precision, copy=True).div_(temperature)
        per_sample = _first_round(masses)
        per_prototype = masses.new_ones(masses.shape[1])
        for _ in range(iterations - 1):
            used = distributed.sum_over_ranks(per_sample @ masses)
            per_prototype = used.mean() / used
            per_sample = (masses @ per_prototype).reciprocal()
        return masses.mul_(per_prototype).mul_(per_sample[:, None])


def _first_round(z: Tensor) -> Tensor:
    """Turn (M, K) logarithms into masses whose prototypes are balanced, in place; return (M,) factors for its rows.

    With them rows sum to 1; the largest mass of a row is 1.
    """
    largest = z.amax(0) if len(z) else z.new_full(z.shape[1:], -torch.inf)
    used = _log_sum_exp_over_samples(z, largest)
    per_sample = z.new_empty(len(z))
    for block in row_blocks(z):
        rows = z[block].sub_(used)
        rows.sub_(rows.amax(1, keepdim=True)).exp_()
        per_sample[block] = rows.sum(1).reciprocal()
    return per_sample


def _log_sum_exp_over_samples(z: Tensor, largest: Tensor) -> Tensor:
    """Return log Σ exp over the rows of all ranks, (K,). largest: (K,), the maximum over this rank's rows.

    A rank without rows adds nothing.
    """
    largest = distributed.max_over_ranks(largest)
    total = torch.zeros_like(largest)
    for block in row_blocks(z):
        total += (z[block] - largest).exp_().sum(0)
    return largest + distributed.sum_over_ranks(total).log()
