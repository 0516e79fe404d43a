"""The terms between and within the phases of a batch: masks brought to the features' grid, and the losses on them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from fmct.data.labelled import LabelledBatch
from fmct.losses.alignment import Contiguity, Mode, inter_feature_alignment
from fmct.losses.discrepancy import Kind, intra_feature_discrepancy
from fmct.losses.precision import as_float, full_precision
from fmct.losses.term import Term, mean_term, pooled
from fmct.losses.tokens import token_fractions
from fmct.shapes import Triple


@dataclass(frozen=True)
class AlignmentConfig:
    """Inter-feature alignment (see inter_feature_alignment); fmct's definition.

    taps: how many of the aligned maps, from the deepest, are compared. patience: updates with nearly constant features
    in a row before the alarm.
    """

    mode: str = "mutual"
    gamma: float = 4.0
    kappa: float = 1.0
    tolerance: int = 0
    contiguity: str = "local"
    reach: int = 1
    taps: int = 2
    patience: int = 20


@dataclass(frozen=True)
class DiscrepancyConfig:
    """Intra-feature discrepancy (see intra_feature_discrepancy); fmct's definition.

    both_phases: also within the CTPA's pathway, on the windows that have one.
    """

    kind: str = "push-pull"
    beta: float = 0.5
    margin: float = 0.0
    rho: float = 0.25
    temperature: float = 0.1
    samples: int = 256
    both_phases: bool = True


def rows_of(batch: LabelledBatch, rows: Tensor) -> LabelledBatch:
    """Return some rows of a batch, also none of them; every list and tensor of it."""
    kept: dict[str, Any] = {}
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            kept[name] = value[rows.to(value.device)]
        elif isinstance(value, list):
            kept[name] = [value[index] for index in rows.tolist()]
    return replace(batch, **kept)


def fractions(batch: LabelledBatch, features: Tensor, stride: Triple) -> tuple[Tensor, Tensor]:
    """Return (valid share, lesion share), each (B, 1, gd, gh, gw), on the grid of a batch's features."""
    return token_fractions(batch.mask, batch.valid, stride, grid=features.shape[2:])


def alignment(
    nct: Sequence[Tensor],
    ctpa: Sequence[Tensor],
    paired: LabelledBatch,
    strides: Sequence[Triple],
    config: AlignmentConfig,
) -> Term:
    """Return the mean over the deepest `config.taps` maps of the alignment of paired rows; count: pairs.

    A pair without a known mask is aligned too, all its tokens alike.
    """
    found = []
    for own, other, stride in list(zip(nct, ctpa, strides, strict=True))[-config.taps :]:
        valid, lesion = fractions(paired, own, stride)
        found.append(
            inter_feature_alignment(
                own,
                other,
                valid=valid,
                foreground=lesion * paired.has_mask.view(-1, 1, 1, 1, 1),
                pair_weight=paired.pair_weight,
                mode=cast(Mode, config.mode),
                gamma=config.gamma,
                kappa=config.kappa,
                tolerance=config.tolerance,
                contiguity=cast(Contiguity, config.contiguity),
                reach=config.reach,
                seed=paired.draws,
            )
        )
    return Term(torch.stack([term.loss for term in found]).mean(), found[-1].count)


def discrepancy(
    phases: Sequence[tuple[Tensor, LabelledBatch]], stride: Triple, config: DiscrepancyConfig, *, seed: int
) -> Term:
    """Return the discrepancy over the samples of all phases; count: (sample, phase) with lesion and background.

    phases: the neck's features and the batch that they belong to. seed: of the run.
    """
    found = []
    for features, batch in phases:
        valid, lesion = fractions(batch, features, stride)
        spacing = batch.spacing * torch.tensor(stride, dtype=batch.spacing.dtype, device=batch.spacing.device)
        found.append(
            intra_feature_discrepancy(
                features,
                lesion,
                spacing_mm=spacing,
                valid=valid,
                has_mask=batch.has_mask,
                seed=[(seed << 40) + draw for draw in batch.draws.tolist()],
                kind=cast(Kind, config.kind),
                beta=config.beta,
                margin=config.margin,
                rho=config.rho,
                temperature=config.temperature,
                samples=config.samples,
            )
        )
    return pooled(found)


def divergence(nct: Tensor, ctpa: Tensor, paired: LabelledBatch) -> Term:
    """Return the mean over valid voxels of KL(CTPA's Bernoulli ‖ NCT's), of logits (R, 1, D, H, W); count: voxels.

    Only the non-contrast side receives gradient. Off by default: see NctPeWeights.
    """
    with full_precision(nct):
        ours, theirs = as_float(nct)[:, 0], as_float(ctpa.detach())[:, 0]
        truth = theirs.sigmoid()
        entropy = functional.binary_cross_entropy_with_logits(theirs, truth, reduction="none")
        costs = functional.binary_cross_entropy_with_logits(ours, truth, reduction="none") - entropy
        return mean_term(costs, paired.valid * paired.pair_weight.view(-1, 1, 1, 1))
