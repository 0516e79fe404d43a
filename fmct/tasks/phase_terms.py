"""The terms between and within the phases of a batch: masks brought to the features' grid, and the losses on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from fmct.data.labelled import LabelledBatch
from fmct.errors import ConfigError
from fmct.losses.alignment import Contiguity, Mode, inter_feature_alignment
from fmct.losses.discrepancy import Kind, intra_feature_discrepancy
from fmct.losses.foreground_bank import ForegroundBank
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

    both_phases: also within the CTPA's pathway, on the windows that have one. ring_mm: background begins at the first
    distance from a lesion, and half of it is drawn within the second. bank: how many lesion prototypes of earlier
    samples each phase keeps, from which windows known to be without lesion are pushed; 0 keeps none. The loss could
    also draw its near background from a map of vessels and heart (`hard`); no such map comes with a cohort, so that
    the ring stands for it here.
    """

    kind: str = "push-pull"
    beta: float = 0.5
    margin: float = 0.0
    rho: float = 0.25
    temperature: float = 0.1
    samples: int = 256
    both_phases: bool = True
    ring_mm: list[float] = field(default_factory=lambda: [3.0, 15.0])
    bank: int = 0

    def __post_init__(self) -> None:
        if len(self.ring_mm) != 2 or not 0 <= self.ring_mm[0] < self.ring_mm[1] or self.bank < 0:
            raise ConfigError(
                "objective.discrepancy: ring_mm are two rising distances in mm, such as [3, 15], and bank is not "
                f"negative; got {self.ring_mm} and {self.bank}."
            )


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


class PhaseBanks:
    """A bank of lesion prototypes for each phase, made when its width is first seen; none where `size` is 0."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._banks: list[ForegroundBank] = []

    def of(self, phase: int, width: int) -> ForegroundBank | None:
        """Return the bank of a phase (0, then 1) whose features have `width` channels."""
        if not self._size:
            return None
        while len(self._banks) <= phase:
            self._banks.append(ForegroundBank(width, size=self._size))
        return self._banks[phase]

    def apply(self) -> None:
        """Take in what an update's samples left. A collective where there are banks."""
        for bank in self._banks:
            bank.apply()

    def state(self) -> list[dict[str, Any]]:
        """Return the banks' states."""
        return [bank.state() for bank in self._banks]

    def load(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take back what `state` gave."""
        self._banks = []
        for phase, state in enumerate(states):
            bank = self.of(phase, state["slots"].shape[1])
            if bank is not None:
                bank.load(state)


def discrepancy(
    phases: Sequence[tuple[Tensor, LabelledBatch]],
    stride: Triple,
    config: DiscrepancyConfig,
    *,
    seed: int,
    banks: PhaseBanks | None = None,
) -> Term:
    """Return the discrepancy over the samples of all phases; count: (sample, phase) with lesion and background.

    phases: the neck's features and the batch that they belong to. seed: of the run. banks: of earlier samples.
    """
    found = []
    for number, (features, batch) in enumerate(phases):
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
                ring_mm=config.ring_mm,
                bank=banks.of(number, features.shape[1]) if banks is not None else None,
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
