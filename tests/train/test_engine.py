import sys

import pytest
import torch

from fmct import distributed
from fmct.errors import ConfigError
from fmct.train import deepspeed
from fmct.train.engine import EngineConfig, Update, poisoned
from fmct.train.engines import build_engine
from fmct.train.optim import OptimConfig
from tests.ranks import run_ranks
from tests.train.toy import CPU, ENGINES, Rows, Toy, batches, engine_of

VALUES = {"learning_rate": 0.02, "weight_decay": 0.1, "momentum": 0.9}


def run(
    kind: str, stage: int, *, updates: int, accumulate: int = 1, size: int = 8, broken: tuple[int, ...] = ()
) -> dict:
    """Train a toy on this rank's part of a global batch of `size`; return its losses, norms, weights and moments."""
    rank, ranks = distributed.rank(), distributed.world_size()
    engine = engine_of(kind, stage, accumulate=accumulate)
    source = batches(0, size // ranks // accumulate, rank=rank, ranks=ranks, broken=broken)
    found: list[Update] = []
    while len(found) < updates:
        output = engine.forward(next(source), VALUES)
        engine.backward(output.loss)
        if (update := engine.step(VALUES)) is not None:
            found.append(update)
    return {
        "losses": [u.loss for u in found],
        "norms": [u.grad_norm for u in found],
        "applied": [u.applied for u in found],
        "terms": [u.terms for u in found],
        "samples": [u.samples for u in found],
        "weights": {n: p.detach().clone() for n, p in engine.task.state_dict().items()},
        "moments": engine.moments(),
        "updates": engine.updates,
    }


def every_engine(updates: int, accumulate: int, size: int, broken: tuple[int, ...]) -> dict:
    """Run every engine in turn in this process."""
    return {key: run(*key, updates=updates, accumulate=accumulate, size=size, broken=broken) for key in ENGINES}


def loads_the_compiler() -> bool:
    engine_of("deepspeed", 1)
    return "torch._inductor.compile_fx" in sys.modules


def test_an_engine_starts_without_torchs_compiler() -> None:
    assert run_ranks(loads_the_compiler) == [False, False]


@pytest.fixture(scope="module")
def one_rank() -> dict:
    return every_engine(4, 1, 8, ())


@pytest.fixture(scope="module")
def two_ranks() -> list[dict]:
    return run_ranks(every_engine, 4, 1, 8, ())


@pytest.fixture(scope="module")
def two_ranks_one_broken() -> list[dict]:
    # Draws 12–15 are rank 1's in the second update.
    return run_ranks(every_engine, 3, 1, 8, (13,))


def reference(updates: int, size: int) -> Toy:
    """Train a toy by the textbook: AdamW with decoupled decay written out, gradients clipped to norm 1."""
    toy = Toy()
    source = batches(0, size)
    named = dict(toy.named_parameters())
    first = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in named.items()}
    second = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in named.items()}
    for t in range(1, updates + 1):
        toy.zero_grad()
        toy(next(source), VALUES).loss.backward()
        grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()}
        norm = torch.sqrt(sum((g.double().square().sum() for g in grads.values()), torch.zeros(())))
        for name, parameter in named.items():
            g = grads[name].double() / max(1.0, float(norm + 1e-6))
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            if name.startswith("patch_embed"):
                multiplier = 0.9**3 * 0.2
            elif name.startswith("blocks"):
                multiplier = 0.9 ** (2 - int(name.split(".")[1]))
            else:
                multiplier = 1.0
            rate = 0.02 * multiplier
            decay = 0.0 if name.endswith("bias") or name.startswith("norm") else 0.1
            step = (first[name] / (1 - 0.9**t)) / ((second[name] / (1 - 0.999**t)).sqrt() + 1e-8)
            with torch.no_grad():
                parameter.copy_((parameter.double() * (1 - rate * decay) - rate * step).float())
    return toy


@pytest.mark.parametrize("key", ENGINES, ids=str)
def test_an_engine_does_what_the_textbook_says(one_rank: dict, key: tuple[str, int]) -> None:
    for name, expected in reference(4, 8).state_dict().items():
        torch.testing.assert_close(one_rank[key]["weights"][name], expected, rtol=2e-5, atol=2e-6, msg=name)


@pytest.mark.parametrize("key", ENGINES, ids=str)
def test_two_ranks_on_half_the_batch_are_one_rank_on_the_whole(
    one_rank: dict, two_ranks: list[dict], key: tuple[str, int]
) -> None:
    """Tolerance: fp32 sums in another order. Losses 1e-6 relative; weights 2e-6 after four updates at rate 0.02."""
    whole = one_rank[key]
    for part in two_ranks:
        torch.testing.assert_close(part[key]["losses"], whole["losses"], rtol=1e-6, atol=0)
        torch.testing.assert_close(part[key]["norms"], whole["norms"], rtol=1e-5, atol=0)
        for name, value in whole["weights"].items():
            torch.testing.assert_close(part[key]["weights"][name], value, rtol=0, atol=2e-6, msg=name)
        for name, value in whole["moments"].items():
            torch.testing.assert_close(part[key]["moments"][name], value, rtol=1e-4, atol=1e-7, msg=name)
    for name, value in two_ranks[0][key]["weights"].items():
        assert torch.equal(value, two_ranks[1][key]["weights"][name]), f"ranks drift apart in {name}"


def test_stages_agree_with_each_other(one_rank: dict) -> None:
    plain = one_rank["torch", 0]
    for key in ENGINES[1:]:
        torch.testing.assert_close(one_rank[key]["losses"], plain["losses"], rtol=1e-6, atol=0)
        torch.testing.assert_close(one_rank[key]["norms"], plain["norms"], rtol=1e-5, atol=0)


def test_weights_move(one_rank: dict) -> None:
    start = Toy().state_dict()
    for key in ENGINES:
        assert not torch.equal(one_rank[key]["weights"]["head.weight"], start["head.weight"])


@pytest.mark.parametrize("key", ENGINES, ids=str)
def test_one_rank_s_non_finite_loss_is_skipped_by_all(two_ranks_one_broken: list[dict], key: tuple[str, int]) -> None:
    for rank, found in enumerate(two_ranks_one_broken):
        assert found[key]["applied"] == [True, False, True]
        assert found[key]["updates"] == 2
        assert found[key]["samples"][1] == [f"draw-{draw}" for draw in range(8 + 4 * rank, 12 + 4 * rank)]
        assert all(torch.isfinite(value).all() for value in found[key]["weights"].values())
        assert all(torch.isfinite(value).all() for value in found[key]["moments"].values())


@pytest.mark.parametrize("key", ENGINES, ids=str)
def test_a_skipped_update_changes_nothing(key: tuple[str, int]) -> None:
    engine = engine_of(*key)
    source = batches(0, 4, broken=(5,))
    states = []
    for _ in range(2):
        engine.backward(engine.forward(next(source), VALUES).loss)
        engine.step(VALUES)
        weights = {n: v.detach().clone() for n, v in engine.task.state_dict().items()}
        states.append({**weights, **engine.moments()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("key", ENGINES, ids=str)
def test_accumulated_passes_are_one_batch_for_a_mean_over_samples(one_rank: dict, key: tuple[str, int]) -> None:
    found = run(*key, updates=4, accumulate=2)
    torch.testing.assert_close(found["losses"], one_rank[key]["losses"], rtol=1e-5, atol=0)
    assert found["samples"][0] == [f"draw-{draw}" for draw in range(8)]
    for name, value in one_rank[key]["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, rtol=0, atol=3e-6, msg=name)


@pytest.mark.parametrize("key", ENGINES, ids=str)
def test_state_goes_from_any_engine_to_any_other(one_rank: dict, key: tuple[str, int]) -> None:
    """A run that changes its engine half way gives the losses of one that does not."""
    for other in ENGINES:
        first = engine_of(*key)
        source = batches(0, 8)
        losses = []
        for engine in (first, engine_of(*other)):
            if engine is not first:
                engine.load(first.task.state_dict(), first.moments(), first.updates)
            for _ in range(2):
                output = engine.forward(next(source), VALUES)
                engine.backward(output.loss)
                update = engine.step(VALUES)
                assert update is not None
                losses.append(update.loss)
        torch.testing.assert_close(losses, one_rank["torch", 0]["losses"], rtol=1e-6, atol=0)


def test_a_rank_s_wish_to_stop_reaches_the_update() -> None:
    engine = engine_of("torch", 0)
    engine.backward(engine.forward(next(batches(0, 4)), VALUES).loss)
    update = engine.step(VALUES, stop=True)
    assert update is not None
    assert update.stop
    assert update.applied


def test_terms_and_health_are_means_over_passes() -> None:
    engine = engine_of("torch", 0, accumulate=2)
    outputs = []
    source = batches(0, 4)
    for _ in range(2):
        outputs.append(engine.forward(next(source), VALUES))
        engine.backward(outputs[-1].loss)
        update = engine.step(VALUES)
    assert update is not None
    assert update.loss == pytest.approx(sum(o.loss.item() for o in outputs) / 2)
    assert update.terms["first"] == pytest.approx(sum(float(o.terms["first"]) for o in outputs) / 2)
    assert update.health["spread"] == pytest.approx(sum(float(o.health["spread"]) for o in outputs) / 2)
    assert set(update.grad_norms) == {"patch_embed", "blocks", "norm", "head", "prototypes", "idle"}
    assert update.grad_norm == pytest.approx(sum(v * v for v in update.grad_norms.values()) ** 0.5)


def test_poison() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    poisoned(3 * x).backward()
    assert x.grad == 3.0
    x.grad = None
    poisoned(x * torch.inf).backward()
    assert torch.isnan(x.grad)


def test_bf16_computes_in_bf16_and_keeps_fp32() -> None:
    seen = []

    class Watching(Toy):
        def forward(self, batch: Rows, values: dict[str, float]) -> object:
            seen.append(torch.tanh(self.patch_embed(batch.x)).dtype)
            return super().forward(batch, values)

    for kind, stage in (("torch", 0), ("deepspeed", 1)):
        config = EngineConfig(kind=kind, zero_stage=stage, precision="bf16")
        engine = build_engine(Watching(), config=config, optim=OptimConfig(), device=CPU)
        engine.backward(engine.forward(next(batches(0, 4)), VALUES).loss)
        assert engine.step(VALUES) is not None
        assert {p.dtype for p in engine.task.parameters()} == {torch.float32}
        assert {m.dtype for m in engine.moments().values()} == {torch.float32}
    assert seen == [torch.bfloat16] * 2


@pytest.mark.parametrize("stage", [1, 2])
def test_a_bucket_of_gradients_is_no_larger_than_the_model(stage: int) -> None:
    engine = engine_of("deepspeed", stage)
    optimizer = engine._engine.optimizer  # type: ignore[attr-defined]
    assert optimizer.reduce_bucket_size == sum(p.numel() for p in engine.task.parameters())


@pytest.mark.parametrize("stage", [1, 2])
def test_a_gradient_larger_than_the_bucket_is_reduced_all_the_same(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run("deepspeed", stage, updates=3)
    monkeypatch.setitem(deepspeed.LARGEST_BUCKET, "cpu", 40)
    engine = engine_of("deepspeed", stage)
    assert max(p.numel() for p in engine.task.parameters()) > engine._engine.optimizer.reduce_bucket_size  # type: ignore[attr-defined]
    small = run("deepspeed", stage, updates=3)
    assert small["norms"] == plain["norms"]
    for kind in ("weights", "moments"):
        assert all(torch.equal(small[kind][name], value) for name, value in plain[kind].items())


def test_impossible_engines_are_refused() -> None:
    with pytest.raises(ConfigError, match="ZeRO-3"):
        engine_of("deepspeed", 3)
    with pytest.raises(ConfigError, match="deepspeed, torch"):
        EngineConfig(kind="fsdp")
    with pytest.raises(ConfigError, match="accumulate"):
        EngineConfig(accumulate=0)


def test_a_second_run_in_one_process_has_its_own_process_group() -> None:
    """The first run leaves its group by torch's own word, as `fmct pretrain` does; DeepSpeed must not look for it."""
    for _ in range(2):
        engine = engine_of("deepspeed", 1)
        engine.close()
        distributed.finalise()
