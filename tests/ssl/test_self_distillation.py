import copy
from dataclasses import replace

import pytest
import torch

from fmct.errors import CheckpointError, ConfigError
from fmct.losses.dino import dino_loss, sinkhorn_knopp
from fmct.losses.gram import gram_loss
from fmct.losses.ibot import ibot_loss
from fmct.losses.koleo import koleo_loss
from fmct.ssl import features
from fmct.ssl.build import TargetsConfig, WeightsConfig
from fmct.ssl.gram_teacher import GramConfig
from fmct.ssl.self_distillation import TERMS
from fmct.train.task import Task, TaskOutput
from tests.ssl.small_runs import JOINT, VALUES, batch_of, small_task, train


def test_it_is_a_task_whose_teacher_is_not_a_parameter():
    task = small_task(weights=JOINT)
    assert isinstance(task, Task)
    names = [name for name, _ in task.named_parameters()]
    assert not any("teacher" in name for name in names)
    assert {name.split(".")[0] for name in names} == {"encoder", "dino_head", "ibot_head", "reconstruction_head"}
    assert all(p.requires_grad for p in task.parameters())
    assert not any(p.requires_grad for p in task.teacher.parameters())
    task.train()
    assert not task.teacher.training
    assert not task.teacher.encoder.training


def test_terms_are_those_of_the_losses_on_separate_passes():
    task = small_task(weights=JOINT, gram=GramConfig(source="snapshot", negatives="clip")).double()
    task.teacher.double()
    anchor = task._beside.gram.encoder  # type: ignore[union-attr]
    assert anchor is not None
    anchor.double()
    batch = batch_of(3).double()
    with torch.no_grad():
        for p in task.teacher.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype))
    output = task(batch, VALUES)
    terms = {}
    student = [task.encoder(batch.global_views[v], None, batch.masks[v]) for v in (0, 1)]
    teacher = [task.teacher.encoder(batch.global_views[v]) for v in (0, 1)]
    assert batch.local_views is not None
    local = [task.encoder(views) for views in batch.local_views]
    assert task.dino_head is not None
    assert task.ibot_head is not None
    assert task.teacher.dino_head is not None
    assert task.teacher.ibot_head is not None
    logits = torch.stack([task.dino_head(out.cls) for out in (*student, *local)])
    targets = sinkhorn_knopp(torch.cat([task.teacher.dino_head(out.cls) for out in teacher]), 0.05)
    terms["dino"] = dino_loss(logits, targets.unflatten(0, (2, -1)))
    mask = batch.masks.flatten(0, 1)
    patches = torch.cat([out.patches for out in student])
    patch_targets = sinkhorn_knopp(task.teacher.ibot_head(torch.cat([out.patches for out in teacher])[mask]), 0.05)
    terms["ibot"] = ibot_loss(task.ibot_head(patches[mask]), patch_targets, mask)
    terms["koleo"] = koleo_loss(student[0].cls) + koleo_loss(student[1].cls)
    unmasked = torch.cat([anchor(views).patches for views in batch.global_views])
    terms["gram"] = gram_loss(patches, unmasked, negatives="clip")
    for name, expected in terms.items():
        torch.testing.assert_close(output.terms[name], expected.detach(), rtol=1e-6, atol=1e-8)
    total = sum(getattr(JOINT, name) * output.terms[name] for name in TERMS)
    torch.testing.assert_close(output.loss.detach(), total)
    assert output.samples == [f"volume-{b}@{24 + b}" for b in range(8)]


@pytest.mark.parametrize("only", TERMS)
def test_a_term_alone_works_and_every_parameter_has_a_gradient(only):
    scheduled = {**VALUES, **{f"weight/{name}": float(name == only) for name in TERMS}}
    task = small_task(weights=JOINT, gram=GramConfig(source="ema"))
    with torch.no_grad():
        task.teacher.encoder.cls_token.add_(1.0)  # else the student would be its own anchor
    output = task(batch_of(0), scheduled)
    output.loss.backward()
    assert list(output.terms) == [only]
    torch.testing.assert_close(output.loss.detach(), output.terms[only].float())
    missing = [name for name, p in task.named_parameters() if p.grad is None]
    assert missing == []
    moved = [name for name, p in task.named_parameters() if p.grad is not None and p.grad.any()]
    idle = {"dino": "ibot_head", "ibot": "dino_head"}.get(only, "dino_head")
    assert any(name.startswith("encoder") for name in moved)
    assert not any(name.startswith(idle) for name in moved)


@pytest.mark.parametrize(
    ("weights", "passes"), [(WeightsConfig(0, 0, 0, 0, 1), 0), (WeightsConfig(0, 0, 1, 0, 0), 0), (WeightsConfig(), 1)]
)
def test_the_teacher_runs_only_when_a_term_needs_it(weights, passes):
    task = small_task(weights=weights)
    calls = []
    task.teacher.encoder.register_forward_hook(lambda *_: calls.append(1))
    output = task(batch_of(0), {"momentum": 0.9} if not passes else VALUES)
    assert len(calls) == passes
    assert "rank_me" in output.health


@pytest.mark.parametrize("weights", [JOINT, WeightsConfig(0, 0, 0, 0, 1), WeightsConfig(0, 1, 0, 0, 0)])
def test_a_batch_without_masked_tokens_or_local_views_trains(weights):
    task = small_task(weights=weights)
    batch = batch_of(0, local=0)
    batch = replace(batch, masks=torch.zeros_like(batch.masks))
    output = task(batch, VALUES)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())
    assert output.terms.get("ibot", torch.zeros(())).item() == 0.0


def test_the_student_is_masked_and_the_teacher_is_not():
    task, batch = small_task(weights=WeightsConfig(1, 1, 0)), batch_of(0)
    hidden = replace(batch, global_views=batch.global_views.clone())
    mask = batch.masks.view(2, 8, 3, 3, 3)
    for axis in (2, 3, 4):
        mask = mask.repeat_interleave(4, dim=axis)
    hidden.global_views[mask[:, :, None].expand_as(hidden.global_views)] += 1.0
    seen = []
    task.encoder.blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach().clone()))
    teacher_seen = []
    task.teacher.encoder.blocks[0].register_forward_hook(lambda _, inputs, __: teacher_seen.append(inputs[0].clone()))
    for given in (batch, hidden):
        task(given, VALUES)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(teacher_seen[0], teacher_seen[1])


def test_losses_are_fp32_under_autocast_and_near_the_fp32_values():
    task = small_task(weights=JOINT)
    reference = copy.deepcopy(task)(batch_of(0), VALUES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = task(batch_of(0), VALUES)
    assert output.loss.dtype == torch.float32
    for name, term in output.terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, reference.terms[name], rtol=0.05, atol=0.02)


def numbers(output: TaskOutput) -> dict[str, float]:
    """Return everything that would be logged of a step."""
    return {"loss": output.loss.item()} | {name: float(v) for name, v in {**output.terms, **output.health}.items()}


@pytest.mark.parametrize("method", ["sinkhorn", "centring"])
def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(method):
    def new(seed: int):
        return small_task(
            seed=seed,
            weights=JOINT,
            targets=TargetsConfig(method),
            gram=GramConfig(refresh_every=2),
            encoder={"drop_path": 0.2},
        )

    unbroken, first, second = new(0), new(0), new(1)
    losses = [numbers(output) for output in train(unbroken, range(8))]
    optimiser = torch.optim.AdamW(first.parameters(), lr=1e-3)
    for _ in train(first, range(4), optimiser=optimiser):
        pass
    second.load_state_dict(first.state_dict())
    second.load_run_state(copy.deepcopy(first.run_state()))
    resumed = torch.optim.AdamW(second.parameters(), lr=1e-3)
    resumed.load_state_dict(optimiser.state_dict())
    again = [numbers(output) for output in train(second, range(4, 8), optimiser=resumed)]
    assert again == losses[4:]
    ours, theirs = unbroken.run_state(), second.run_state()
    assert ours["updates"] == theirs["updates"] == 8
    assert all(torch.equal(ours["teacher"][name], theirs["teacher"][name]) for name in ours["teacher"])
    assert ours["gram"]["refreshes"] == theirs["gram"]["refreshes"] == 4


def test_run_state_holds_tensors_and_plain_values_under_slash_free_names():
    state = small_task(weights=JOINT, targets=TargetsConfig("centring")).run_state()

    def check(value: object, path: str) -> None:
        assert "/" not in path
        if isinstance(value, dict):
            for name, inner in value.items():
                check(inner, f"{path}.{name}")
        else:
            assert isinstance(value, (torch.Tensor, int, float, str, bool)), path

    check(state, "")
    assert any(name.startswith("encoder.blocks.0") for name in state["teacher"])


def test_a_run_state_of_another_configuration_is_refused():
    with pytest.raises(CheckpointError, match="other heads, targets"):
        small_task().load_run_state(small_task(weights=WeightsConfig(0, 0, 1)).run_state())
    with pytest.raises(CheckpointError, match="gram"):
        small_task(weights=JOINT).load_run_state(small_task().run_state())


def test_the_teacher_moves_after_an_update_only_and_can_be_reset():
    task = small_task()
    before = copy.deepcopy(task.teacher.state_dict())
    task(batch_of(0), VALUES).loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in task.teacher.state_dict().items())
    with torch.no_grad():
        task.encoder.cls_token.add_(1.0)
    task.after_update({"momentum": 0.75})
    torch.testing.assert_close(task.teacher.encoder.cls_token, before["encoder.cls_token"] + 0.25)
    task.reset_teacher()
    assert torch.equal(task.teacher.encoder.cls_token, task.encoder.cls_token)


def test_a_reset_takes_the_gram_anchor_along():
    task = small_task(weights=JOINT)
    with torch.no_grad():
        task.encoder.cls_token.add_(1.0)
    task.reset_teacher()
    assert torch.equal(task.run_state()["gram"]["encoder"]["cls_token"], task.encoder.cls_token)


def test_companions_follow_the_device_but_not_the_precision():
    task = small_task(weights=JOINT, targets=TargetsConfig("centring")).bfloat16()
    assert task.encoder.cls_token.dtype == torch.bfloat16
    assert task.teacher.encoder.cls_token.dtype == torch.float32
    moved = small_task(weights=JOINT, targets=TargetsConfig("centring")).to("meta")
    assert moved.teacher.encoder.cls_token.device.type == "meta"
    state = moved.run_state()
    assert state["monitor"]["features"]["rows"].device.type == "meta"
    assert state["dino_targets"]["value"].device.type == "meta"
    assert state["gram"]["encoder"]["cls_token"].device.type == "meta"


def test_weights_without_their_parts_are_refused():
    task = small_task(weights=WeightsConfig(dino=1.0, ibot=0.0, koleo=0.0))
    with pytest.raises(ConfigError, match="pixel"):
        task(batch_of(0), {**VALUES, "weight/pixel": 1.0})
    with pytest.raises(ConfigError, match="weight 0"):
        task(batch_of(0), {**VALUES, "weight/dino": 0.0})


def test_padding_the_masked_tokens_changes_nothing(monkeypatch):
    """Accelerators pad the buffer to a fixed bound; here the CPU is made to, with gradients to match."""
    results = []
    exact = features.masked_index
    for bound in (0.0, 0.9):
        monkeypatch.setattr(features, "masked_index", lambda mask, bound, forced=bound: exact(mask, bound=forced))
        task = small_task(weights=JOINT).double()
        task.teacher.double()
        task._beside.gram.encoder.double()  # type: ignore[union-attr]
        output = task(batch_of(1).double(), VALUES)
        output.loss.backward()
        results.append((output, [p.grad for p in task.parameters()]))
    (plain, gradients), (padded, padded_gradients) = results
    for name, term in plain.terms.items():
        torch.testing.assert_close(padded.terms[name], term, rtol=1e-10, atol=1e-12)
    for got, wanted in zip(padded_gradients, gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-11)
