"""Embolism on non-contrast CT with a CTPA as teacher in training only: CPMN-style cross-phase mutual learning.

The idea, two pathways that learn from each other by inter-feature alignment and intra-feature discrepancy, is CPMN's
("Cross-Phase Mutual Learning Framework for Pulmonary Embolism Identification on Non-Contrast CT Scans", Bai et al.,
MICCAI 2024). Its equations, weights and architecture were not available: all that is defined here and in the losses is
fmct's own. Any two registered series serve: PET beside CT does as CTPA beside NCT. The kind "nct_pe" of
fmct.tasks.kinds. Research only, not a medical device.

    L = seg_n + l_c cls_n + l_b bag_n + eta (seg_c + l_c cls_c) + ramp (l_A alignment + l_D discrepancy + l_K kl)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fmct.config import build, plain
from fmct.data.labelled import LabelledBatch
from fmct.errors import CheckpointError, ConfigError
from fmct.losses.bag import bag_loss
from fmct.losses.classification import binary_loss
from fmct.losses.collapse import AlignmentMonitor
from fmct.losses.segmentation import segmentation_loss
from fmct.losses.term import Term
from fmct.models.dual_phase import DualPhase, DualPhaseConfig, build_dual_phase
from fmct.models.phase_heads import PhaseOutput
from fmct.models.single_phase import DualPhaseOutput, SinglePhase
from fmct.shapes import TripleF
from fmct.tasks import phase_terms
from fmct.tasks.backbone import build_backbone, load_trained, without_training
from fmct.tasks.classification import unlabelled
from fmct.tasks.phase_terms import AlignmentConfig, DiscrepancyConfig
from fmct.tasks.supervised import SupervisedTask, weighted
from fmct.train.task import TaskOutput

RAMP = "ramp"  # the scheduled value that the between- and within-phase terms are multiplied by


@dataclass(frozen=True)
class NctPeWeights:
    """Weights of the terms: l_c, l_b, eta, l_A, l_D, l_K of the module's sum. A term of weight 0 is not computed.

    kl: of a voxel-wise divergence from the CTPA's probabilities; 0 by default, as what registration leaves would put it
    on vessel edges.
    """

    classification: float = 1.0
    bag: float = 1.0
    ctpa: float = 1.0
    alignment: float = 0.5
    discrepancy: float = 0.1
    kl: float = 0.0

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 0:
            raise ConfigError(f"objective.weights: none may be negative; got {vars(self)}.")

    @property
    def reads_ctpa(self) -> bool:
        """Whether any term looks at the CTPA's pathway."""
        return self.ctpa + self.alignment + self.kl > 0


@dataclass(frozen=True)
class NctPeConfig:
    """The objective. See NctPeWeights, AlignmentConfig and DiscrepancyConfig."""

    weights: NctPeWeights = field(default_factory=NctPeWeights)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    discrepancy: DiscrepancyConfig = field(default_factory=DiscrepancyConfig)
    positive_weight: float | None = None


class NctPe(SupervisedTask):
    """Train a dual-pathway network (or its first pathway alone, a SinglePhase: the non-contrast baseline).

    Without a term that reads the CTPA, its pathway is skipped and its parameters are not trained: the run is then the
    baseline's to the bit.
    """

    network: SinglePhase

    def __init__(self, network: SinglePhase, config: NctPeConfig | None = None, *, seed: int = 0) -> None:
        super().__init__(network)
        self.config = config or NctPeConfig()
        self.seed = seed
        self.monitor = AlignmentMonitor(patience=self.config.alignment.patience)
        self.banks = phase_terms.PhaseBanks(self.config.discrepancy.bank)
        self.dual = isinstance(network, DualPhase) and self.config.weights.reads_ctpa
        if isinstance(network, DualPhase) and not self.dual:
            for name, parameter in network.named_parameters():
                if name.startswith("ctpa"):
                    parameter.requires_grad_(False)

    def forward(self, batch: LabelledBatch, values: Mapping[str, float]) -> TaskOutput:
        """Return the loss of a batch; `values["ramp"]` is the share of alignment and discrepancy, 0 to 1."""
        dual = self.dual and batch.paired is not None
        offered = {"x_c": batch.paired, "has_pair": batch.has_pair} if dual else {}
        output: DualPhaseOutput = self.network(
            batch.volumes, spacing=batch.spacing, drop_path_keys=batch.draws, **offered
        )
        weights = self.config.weights
        terms = self._supervised(output.nct, batch, "nct")
        if weights.bag:
            terms["bag_nct"] = self._bags(output.nct, batch)
        alarms: list[str] = []
        if dual:
            contrast, rows = _contrast(output), output.pair_rows
            paired = phase_terms.rows_of(batch, rows)
            if weights.ctpa:
                terms |= self._supervised(contrast, paired, "ctpa")
            alarms = self._between(output.nct, contrast, rows, paired, terms)
        if weights.discrepancy:
            terms["discrepancy"] = self._discrepancy(output, batch)
        return weighted(
            terms,
            self._weights(float(values[RAMP])),
            samples=batch.entries,
            health=self.monitor.health(),
            alarms=alarms,
            idle=output.idle,
        )

    def after_update(self, values: Mapping[str, float]) -> None:
        """Take the update's lesion prototypes into the banks. A collective where there are any."""
        del values
        self.banks.apply()

    def run_state(self) -> dict[str, Any]:
        """Return the state of the collapse monitor and the banks of lesion prototypes."""
        return {"alignment_monitor": self.monitor.state(), "banks": self.banks.state()}

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `run_state` gave. Raises CheckpointError for the state of another task."""
        if not {"alignment_monitor"} <= set(state) <= {"alignment_monitor", "banks"}:
            raise CheckpointError(f"the checkpoint's run state holds {', '.join(state)}; expected alignment_monitor.")
        self.monitor.load(state["alignment_monitor"])
        self.banks.load(state.get("banks", ()))

    def _weights(self, ramp: float) -> dict[str, float]:
        w = self.config.weights
        return {
            "segmentation_nct": 1.0,
            "classification_nct": w.classification,
            "bag_nct": w.bag,
            "segmentation_ctpa": w.ctpa,
            "classification_ctpa": w.ctpa * w.classification,
            "alignment": ramp * w.alignment,
            "discrepancy": ramp * w.discrepancy,
            "kl": ramp * w.kl,
        }

    def _supervised(self, phase: PhaseOutput, batch: LabelledBatch, name: str) -> dict[str, Term]:
        """Return the terms of one phase's segmentation and classification."""
        segmentation = segmentation_loss(phase.segmentation, batch.mask, valid=batch.valid, has_mask=batch.has_mask)
        found = {f"segmentation_{name}": segmentation}
        if self.config.weights.classification:
            positive = self.config.positive_weight
            weight = None if positive is None else phase.classification.new_tensor([positive])
            labels = batch.labels.to(phase.classification.device)
            found[f"classification_{name}"] = binary_loss(phase.classification, labels, pos_weight=weight)
        return found

    def _bags(self, phase: PhaseOutput, batch: LabelledBatch) -> Term:
        """Return the term of crops without a mask of positive patients: some of them show it, no one knows which."""
        labels = unlabelled(batch)
        return bag_loss(phase.classification, batch.bags, labels, members=labels.isfinite().any(1))

    def _between(
        self, nct: PhaseOutput, ctpa: PhaseOutput, rows: Tensor, paired: LabelledBatch, terms: dict[str, Term]
    ) -> list[str]:
        """Add the terms between the phases to `terms` and return the alarms of a collapse."""
        weights, strides = self.config.weights, self.network.aligned_strides
        own = [map_[rows] for map_ in nct.aligned]
        if weights.alignment:
            terms["alignment"] = phase_terms.alignment(own, ctpa.aligned, paired, strides, self.config.alignment)
        if weights.kl:
            terms["kl"] = phase_terms.divergence(nct.segmentation[rows], ctpa.segmentation, paired)
        if not weights.alignment:
            return []
        valid, _ = phase_terms.fractions(paired, own[-1], strides[-1])
        standing = self._collapsed()
        said = self.monitor.observe({"nct": own[-1].detach(), "ctpa": ctpa.aligned[-1].detach()}, valid=valid)
        # Said once when a collapse begins, not at every update for as long as it lasts.
        return said if self._collapsed() - standing else []

    def _collapsed(self) -> set[str]:
        """Return the phases whose features have been almost constant for long enough to be an alarm."""
        return {name for name, streak in self.monitor.streaks.items() if streak >= self.monitor.patience}

    def _discrepancy(self, output: DualPhaseOutput, batch: LabelledBatch) -> Term:
        """Return the term within each phase that this batch and run have."""
        phases = [(output.nct.neck, batch)]
        if self.dual and batch.paired is not None and self.config.discrepancy.both_phases:
            phases.append((_contrast(output).neck, phase_terms.rows_of(batch, output.pair_rows)))
        return phase_terms.discrepancy(
            phases, self.network.neck_stride, self.config.discrepancy, seed=self.seed, banks=self.banks
        )


def _contrast(output: DualPhaseOutput) -> PhaseOutput:
    """Return the CTPA's output; without any pair on this rank, tensors of no rows, so that every collective is met."""
    if output.ctpa is not None:
        return output.ctpa
    n = output.nct
    return PhaseOutput(
        n.segmentation[:0], n.classification[:0], [t[:0] for t in n.taps], [t[:0] for t in n.aligned], n.neck[:0], None
    )


class NctPredictor(SinglePhase):
    """The first pathway as a published model: reads the non-contrast series and returns its PhaseOutput."""

    def forward(  # type: ignore[override]
        self, x_n: Tensor, x_c: Tensor | None = None, *, spacing: Tensor | None = None, has_pair: Tensor | None = None
    ) -> PhaseOutput:
        """Return segmentation, classification and attention of (B, C, D, H, W). Raises TypeError for a CTPA."""
        return super().forward(x_n, x_c, spacing=spacing, has_pair=has_pair).nct


def describe_network(backbone: Mapping[str, Any], config: DualPhaseConfig) -> dict[str, Any]:
    """Return the architecture that `build_network` builds from."""
    return {**backbone, "dual_phase": plain(config)}


def build_network(
    architecture: Mapping[str, Any],
    *,
    in_channels: int,
    spacing_mm: Sequence[float],
    encoder: nn.Module | None = None,
) -> DualPhase:
    """Return the dual network of an architecture, on `encoder` where one is given (pretrained), else untrained."""
    config = build(DualPhaseConfig, architecture["dual_phase"], "the architecture's dual_phase")
    built = encoder or build_backbone(architecture, in_channels=in_channels, spacing_mm=spacing_mm)
    return build_dual_phase(built, config)  # type: ignore[arg-type]


def build_predictor(architecture: Mapping[str, Any], *, in_channels: int, spacing_mm: TripleF) -> nn.Module:
    """Return the network that predicts, untrained: the first pathway without projectors (see TaskKind)."""
    config = build(DualPhaseConfig, architecture["dual_phase"], "the architecture's dual_phase")
    encoder = build_backbone(without_training(architecture), in_channels=in_channels, spacing_mm=spacing_mm)
    kept = {key: getattr(config, key) for key in ("taps", "width", "stem_channels", "hidden", "air")}
    return NctPredictor(encoder, phase_embedding=config.share == "encoder", **kept).eval()


def trained_predictor(
    architecture: Mapping[str, Any],
    parameters: Mapping[str, torch.Tensor],
    *,
    in_channels: int,
    spacing_mm: TripleF,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network that predicts with a run's weights, and its architecture: nothing of the CTPA is in either."""
    network = build_network(architecture, in_channels=in_channels, spacing_mm=spacing_mm)
    load_trained(network, architecture, parameters)
    state = {n: v for n, v in network.export_nct().state_dict().items() if not n.startswith("nct.projectors.")}
    slim = without_training(architecture)
    slim["dual_phase"] = {**slim["dual_phase"], "projector_dim": None, "in_channels_b": None}
    predictor = build_predictor(slim, in_channels=in_channels, spacing_mm=spacing_mm)
    predictor.load_state_dict(state)
    return predictor, slim
