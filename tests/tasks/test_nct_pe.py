"""The cross-phase task: missing data, the non-contrast baseline to the bit, collapse, export (T1-T6, N2)."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fmct.data.labelled import LabelledBatch
from fmct.errors import CheckpointError, ConfigError
from fmct.models.dual_phase import DualPhase, DualPhaseConfig, build_dual_phase
from fmct.models.single_phase import SinglePhase
from fmct.tasks import nct_pe
from fmct.tasks.backbone import describe
from fmct.tasks.nct_pe import NctPe, NctPeConfig, NctPeWeights
from fmct.tasks.phase_terms import AlignmentConfig, DiscrepancyConfig
from fmct.train.optim import OptimConfig
from fmct.train.schedule import Schedule, ScheduleConfig, constant
from fmct.train.torch_engine import TorchEngine
from tests.tasks.batches import ENCODER, NAN, batch, tiny_vit

CPU = torch.device("cpu")
NETWORK = DualPhaseConfig(taps=2, width=16, stem_channels=8, hidden=16, projector_dim=8)
FULL = {"learning_rate": 1e-3, "weight_decay": 0.05, "ramp": 1.0}
ALONE = NctPeWeights(ctpa=0.0, alignment=0.0, discrepancy=0.0)
PAIRED = batch([1, 0, 1, 0], has_pair=[True, True, False, True])


def dual(**changes: Any) -> DualPhase:
    return build_dual_phase(tiny_vit(), replace(NETWORK, **changes))


def single() -> SinglePhase:
    settings = {key: getattr(NETWORK, key) for key in ("taps", "width", "stem_channels", "hidden", "projector_dim")}
    return SinglePhase(tiny_vit(), **settings)


def trained(task: NctPe, given: LabelledBatch, updates: int = 3) -> dict[str, torch.Tensor]:
    """Return the parameters after some updates of the real engine, and the losses beside them."""
    engine = TorchEngine(task, optim=OptimConfig(last_layer=""), device=CPU, dtype=torch.float32, accumulate=1)
    losses = []
    for _ in range(updates):
        output = engine.forward(given, FULL)
        engine.backward(output.loss)
        update = engine.step(FULL)
        assert update is not None
        assert update.applied
        losses.append(output.loss.detach())
    return {"losses": torch.stack(losses), **task.state_dict()}


def test_without_ctpa_terms_it_is_the_non_contrast_baseline_to_the_bit() -> None:
    """T1: eta = l_A = l_D = 0 skips the CTPA branch: losses and parameters of the first pathway are the baseline's."""
    ours = trained(NctPe(dual(), NctPeConfig(ALONE)), PAIRED)
    baseline = trained(NctPe(single(), NctPeConfig(ALONE)), replace(PAIRED, paired=None))
    for name, value in baseline.items():
        own = ours[name]
        if name == "network.phase_embedding":
            own = own[:1]
        assert torch.equal(own, value), name
    untouched = dual().state_dict()
    for name, value in ours.items():
        if name.startswith("network.ctpa"):
            assert torch.equal(value, untouched[name.removeprefix("network.")]), name


def test_the_skipped_pathway_does_not_run() -> None:
    """T1, N3: not one module of the CTPA's is called."""
    network, called = dual(), []
    assert network.ctpa is not None
    for module in network.ctpa.modules():
        module.register_forward_hook(lambda *_: called.append(1))
    NctPe(network, NctPeConfig(ALONE))(PAIRED, FULL)
    assert not called
    NctPe(network, NctPeConfig())(PAIRED, FULL)
    assert called


def test_a_batch_without_any_pair_goes_backward() -> None:
    """T2: alignment is a graph-safe zero, and every trained parameter has a gradient, so that ranks reduce alike."""
    task = NctPe(dual(), NctPeConfig())
    output = task(batch([1, 0], has_pair=[False, False]), FULL)
    assert output.terms["alignment"] == 0
    assert output.terms["segmentation_ctpa"] == 0
    assert output.health["count/alignment"] == 0
    output.loss.backward()
    for name, parameter in task.named_parameters():
        if name.startswith("network.ctpa"):
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name


def test_pairs_count_by_themselves() -> None:
    """A11 in the task: the terms between the phases of a mixed batch are those of its pairs alone."""
    task = NctPe(dual(), NctPeConfig()).eval()
    mixed = task(PAIRED, FULL)
    rows = torch.tensor([0, 1, 3])
    alone = task(nct_pe.phase_terms.rows_of(PAIRED, rows), FULL)
    assert mixed.health["count/alignment"] == 3
    for name in ("alignment", "segmentation_ctpa", "classification_ctpa"):
        torch.testing.assert_close(mixed.terms[name], alone.terms[name], rtol=1e-5, atol=1e-6)


def test_unknown_labels_and_masks_contribute_nothing() -> None:
    """T4: y unknown is in no classification term, has_mask = 0 in no segmentation term; a verified negative is."""
    task = NctPe(dual(), NctPeConfig(replace(ALONE, bag=0.0)))
    known = batch([1, 0])
    more = batch([1, 0, NAN], patient_labels=[1, 0, NAN], has_mask=[True, True, False])
    more.volumes[:2], more.mask[:2] = known.volumes, known.mask
    a, b = task(known, FULL), task(more, FULL)
    for name in ("segmentation_nct", "classification_nct"):
        torch.testing.assert_close(a.terms[name], b.terms[name], rtol=1e-5, atol=1e-6)
    assert b.health["count/segmentation_nct"] == 2
    negative = task(batch([0]), FULL)
    assert negative.health["count/segmentation_nct"] == 1
    assert negative.terms["segmentation_nct"] > 0


def test_a_positive_patients_crop_without_a_mask_is_only_part_of_a_bag() -> None:
    """T4: such a crop is neither a positive nor a negative; the bag's loss is that of log-mean-exp over its crops."""
    crops = batch([NAN, NAN], patient_labels=[1, 1], has_mask=[False, False], bags=torch.tensor([7, 7]))
    network = dual()
    output = NctPe(network, NctPeConfig(ALONE))(crops, FULL)
    assert output.health["count/classification_nct"] == 0
    assert output.terms["classification_nct"] == 0
    assert output.health["count/bag_nct"] == 1
    with torch.no_grad():
        logits = network.train()(crops.volumes, spacing=crops.spacing, drop_path_keys=crops.draws).nct.classification
    expected = torch.nn.functional.softplus(-(logits.exp().mean().log()))
    torch.testing.assert_close(output.terms["bag_nct"], expected, rtol=1e-5, atol=1e-6)


def test_ramped_terms_enter_slowly_and_every_term_is_logged_with_its_count() -> None:
    """T5: the ramp is 0 at step 0 and 1 after a tenth of the run; at 0 alignment and discrepancy do not count."""
    ramp = ScheduleConfig(peak=1.0, start=0.0, warmup=0.1, kind="constant")
    schedule = Schedule({"learning_rate": constant(1e-3), "ramp": ramp}, total=100)
    assert [schedule.at(step)["ramp"] for step in (0, 5, 10, 99)] == [0.0, 0.5, 1.0, 1.0]
    task = NctPe(dual(), NctPeConfig())
    start, end = task(PAIRED, {**FULL, "ramp": 0.0}), task(PAIRED, FULL)
    within = 0.5 * end.terms["alignment"] + 0.1 * end.terms["discrepancy"]
    torch.testing.assert_close(end.loss - start.loss, within)
    names = {"segmentation", "classification"}
    every = {f"{name}_{phase}" for name in names for phase in ("nct", "ctpa")} | {"bag_nct", "alignment", "discrepancy"}
    assert set(end.terms) == every
    assert {f"count/{name}" for name in every} <= set(end.health)


def test_overfitting_four_pairs_segments_and_aligns() -> None:
    """T6: 4 synthetic pairs, 200 steps: Dice of the non-contrast pathway > 0.8, and the alignment falls by half."""
    given = batch([1, 1, 1, 0], has_pair=[True] * 4, side=8)
    task = NctPe(dual(), NctPeConfig())
    engine = TorchEngine(
        task, optim=OptimConfig(last_layer="", clip=1.0), device=CPU, dtype=torch.float32, accumulate=1
    )
    rates = Schedule({"learning_rate": ScheduleConfig(peak=4e-3, end=1e-4, warmup=0.05)}, total=200)
    aligned = []
    for step in range(200):
        values = {**FULL, **rates.at(step), "ramp": min(1.0, step / 20)}
        output = engine.forward(given, values)
        engine.backward(output.loss)
        engine.step(values)
        aligned.append(float(output.terms["alignment"]))
    with torch.no_grad():
        found = task.network(given.volumes, spacing=given.spacing).nct.segmentation[:, 0] > 0
    dice = 2 * float((found & (given.mask > 0)).sum()) / float(found.sum() + (given.mask > 0).sum())
    assert dice > 0.8
    assert aligned[-1] < 0.5 * aligned[0]


def test_constant_features_raise_an_alarm_that_survives_a_checkpoint() -> None:
    """A13 in the task: with every aligned feature the same, the run is told so, once in a row is enough here."""
    network = dual()
    for heads in (network.nct, network.ctpa):
        assert heads is not None
        assert heads.projectors is not None
        for projector in heads.projectors:
            for parameter in projector.parameters():
                parameter.data.fill_(0.0)
            projector.mlp[2].bias.data.fill_(1.0)  # type: ignore[union-attr, operator]
    task = NctPe(network, NctPeConfig(alignment=AlignmentConfig(patience=2)))
    assert not task(PAIRED, FULL).alarms
    after = NctPe(dual(), NctPeConfig(alignment=AlignmentConfig(patience=2)))
    after.load_run_state(task.run_state())
    assert after.monitor.streaks == task.monitor.streaks
    assert any("alignment-collapse" in alarm for alarm in task(PAIRED, FULL).alarms)
    assert not task(PAIRED, FULL).alarms, "a collapse that lasts is said once"
    with pytest.raises(CheckpointError, match="expected alignment_monitor"):
        task.load_run_state({"teacher": 1})


def test_the_exported_model_holds_nothing_of_the_ctpa() -> None:
    """N1, N2: the predictor has no CTPA parameter, gives the trained network's numbers, and refuses a CTPA."""
    architecture = nct_pe.describe_network(describe(ENCODER), replace(NETWORK, in_channels_b=2))
    network = nct_pe.build_network(architecture, in_channels=1, spacing_mm=(3.0, 3.0, 3.0))
    task = NctPe(network, NctPeConfig())
    predictor, slim = nct_pe.trained_predictor(
        architecture, task.state_dict(), in_channels=1, spacing_mm=(3.0, 3.0, 3.0)
    )
    assert not [name for name in predictor.state_dict() if "ctpa" in name or "projector" in name]
    task.eval()
    x, spacing = PAIRED.volumes, PAIRED.spacing
    second = torch.cat([PAIRED.volumes, PAIRED.volumes], dim=1)
    with torch.no_grad():
        own = predictor(x, spacing=spacing)
        offered = network(x, second, spacing=spacing, has_pair=PAIRED.has_pair).nct
    assert torch.equal(own.segmentation, offered.segmentation)
    assert torch.equal(own.classification, offered.classification)
    with pytest.raises(TypeError, match="no CTPA pathway"):
        predictor(x, second)
    again = nct_pe.build_predictor(slim, in_channels=1, spacing_mm=(3.0, 3.0, 3.0))
    again.load_state_dict(predictor.state_dict())


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match="negative"):
        NctPeWeights(alignment=-1.0)


@pytest.mark.parametrize("share", ["none", "all"])
def test_every_way_of_sharing_trains(share: str) -> None:
    task = NctPe(dual(share=share), NctPeConfig())
    before = {name: value.clone() for name, value in task.state_dict().items()}
    after = trained(task, PAIRED, updates=1)
    assert any(not torch.equal(before[name], after[name]) for name in before if "nct.decoder" in name)


def test_divergence_is_zero_for_equal_logits_and_moves_the_non_contrast_side_alone() -> None:
    paired = batch([1, 0], has_pair=[True, True])
    ours = torch.randn(2, 1, 12, 12, 12, requires_grad=True)
    same = nct_pe.phase_terms.divergence(ours, ours.detach().clone(), paired)
    assert abs(same.loss.item()) < 1e-6
    theirs = torch.randn(2, 1, 12, 12, 12, requires_grad=True)
    term = nct_pe.phase_terms.divergence(ours, theirs, paired)
    p, q = theirs.detach().sigmoid().double(), ours.detach().sigmoid().double()
    slow = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(term.loss.double(), slow, rtol=1e-4, atol=1e-6)
    term.loss.backward()
    assert theirs.grad is None
    assert ours.grad is not None


def test_the_discrepancys_ring_and_bank_are_settings_and_the_bank_is_run_state() -> None:
    """ring_mm and the bank of earlier lesions are reached from the configuration; a resumed bank is the one left."""
    narrow, wide = (
        NctPe(dual(), NctPeConfig(discrepancy=DiscrepancyConfig(ring_mm=ring))) for ring in ([0.0, 15.0], [13.0, 40.0])
    )
    terms = [task(PAIRED, FULL).terms["discrepancy"] for task in (narrow, wide)]
    assert not torch.equal(*terms)
    task = NctPe(dual(), NctPeConfig(discrepancy=DiscrepancyConfig(bank=6)))
    before = task(PAIRED, FULL)
    task.after_update(FULL)
    after = task(PAIRED, FULL)
    # windows without a lesion count once there are lesions of earlier samples to push them from
    assert float(after.health["count/discrepancy"]) > float(before.health["count/discrepancy"])
    again = NctPe(dual(), NctPeConfig(discrepancy=DiscrepancyConfig(bank=6)))
    again.load_state_dict(task.state_dict())
    again.load_run_state(task.run_state())
    assert torch.equal(again(PAIRED, FULL).terms["discrepancy"], after.terms["discrepancy"])
    with pytest.raises(ConfigError, match="two rising distances"):
        DiscrepancyConfig(ring_mm=[15.0, 3.0])
