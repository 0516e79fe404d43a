"""Two ranks on half the batch are one process on the whole batch: losses, health, parameters, teacher."""

import pytest
import torch

from fmct import distributed
from fmct.ssl.build import TargetsConfig
from fmct.ssl.gram_teacher import GramConfig
from tests.ranks import run_ranks
from tests.ssl.small_runs import JOINT, VALUES, batch_of, small_task

STEPS = 3


def run(method: str) -> dict:
    """Train in fp64 with gradients averaged over ranks; the masks differ in number between the ranks."""
    task = small_task(weights=JOINT, targets=TargetsConfig(method), gram=GramConfig(refresh_every=2)).double()
    task.teacher.double()
    task._beside.gram.encoder.double()  # type: ignore[union-attr]
    optimiser = torch.optim.SGD(task.parameters(), lr=0.05)
    result: dict = {"terms": [], "health": []}
    size = 8 // distributed.world_size()
    part = slice(distributed.rank() * size, (distributed.rank() + 1) * size)
    for step in range(STEPS):
        batch = batch_of(step).double()
        batch.masks[:, :4] = False if step == 1 else batch.masks[:, :4]  # one rank without a masked token
        batch.masks[:, 6] = False
        output = task(batch.part(part), VALUES)
        optimiser.zero_grad()
        output.loss.backward()
        for p in task.parameters():
            assert p.grad is not None
            p.grad = distributed.sum_over_ranks(p.grad) / distributed.world_size()
        optimiser.step()
        task.after_update(VALUES)
        result["terms"].append({name: term.item() for name, term in output.terms.items()})
        result["health"].append({name: float(value) for name, value in output.health.items()})
    result["parameters"] = {name: p.detach() for name, p in task.named_parameters()}
    result["state"] = task.run_state()
    return result


def both() -> dict[str, dict]:
    return {method: run(method) for method in ("sinkhorn", "centring")}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, dict]]:
    return run_ranks(both)


@pytest.mark.parametrize("method", ["sinkhorn", "centring"])
def test_two_ranks_are_one_process(ranks, method):
    whole, first, second = run(method), ranks[0][method], ranks[1][method]
    for step in range(STEPS):
        for name, value in whole["terms"][step].items():
            mean = (first["terms"][step][name] + second["terms"][step][name]) / 2
            assert mean == pytest.approx(value, rel=1e-6, abs=1e-9), name
        for name, value in whole["health"][step].items():
            mean = (first["health"][step][name] + second["health"][step][name]) / 2
            assert mean == pytest.approx(value, rel=1e-5, abs=1e-6), name
    for name, value in whole["parameters"].items():
        assert torch.equal(first["parameters"][name], second["parameters"][name])
        torch.testing.assert_close(first["parameters"][name], value, rtol=1e-6, atol=1e-9)
    for name, value in whole["state"]["teacher"].items():
        torch.testing.assert_close(first["state"]["teacher"][name], value, rtol=1e-6, atol=1e-9)
    rows = whole["state"]["monitor"]["features"]["rows"]
    torch.testing.assert_close(first["state"]["monitor"]["features"]["rows"], rows, rtol=1e-5, atol=1e-6)
    assert torch.equal(first["state"]["monitor"]["features"]["rows"], second["state"]["monitor"]["features"]["rows"])
