"""Two ranks, each with its part of the batch, against one process with the whole: values and gradients."""

import pytest
import torch
from torch import Tensor

from fmct import distributed
from fmct.losses.centring import Centre
from fmct.losses.dino import dino_loss, sinkhorn_knopp
from fmct.losses.ibot import ibot_loss
from fmct.losses.koleo import koleo_loss
from fmct.losses.reconstruction import reconstruction_loss
from tests.ranks import run_ranks

IMAGES, PROTOTYPES = 6, 11
UNEVEN = {"even": [7, 7], "uneven": [3, 12], "empty rank": [9, 0], "both empty": [0, 0]}


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mask = torch.rand(2, IMAGES, 10, generator=generator) < 0.4
    mask[:, : IMAGES // 2] &= torch.rand(2, IMAGES // 2, 10, generator=generator) < 0.5  # fewer on the first rank
    return {
        "teacher": normal(2, IMAGES, PROTOTYPES),
        "student": normal(5, IMAGES, PROTOTYPES),
        "features": normal(IMAGES, 8),
        "mask": mask,
        "patch_teacher": normal(2, IMAGES, 10, PROTOTYPES),
        "patch_student": normal(2, IMAGES, 10, PROTOTYPES),
        "voxels": normal(2, IMAGES, 10, PROTOTYPES),
    }


def objectives(part: slice) -> dict[str, tuple[Tensor, Tensor]]:
    """Return (value, gradient) of each objective on the images of `part`."""
    given = {name: tensor if name == "features" else tensor[:, part] for name, tensor in inputs().items()}
    given["features"] = given["features"][part]
    results = {}

    def record(name: str, loss: Tensor, leaf: Tensor) -> None:
        loss.backward()
        assert leaf.grad is not None
        results[name] = (loss.detach(), leaf.grad)

    student = given["student"].clone().requires_grad_()
    targets = sinkhorn_knopp(given["teacher"].flatten(0, 1), 0.3).unflatten(0, (2, -1))
    record("dino", dino_loss(student, targets), student)
    patches = given["patch_student"].clone().requires_grad_()
    mask = given["mask"]
    patch_targets = sinkhorn_knopp(given["patch_teacher"][mask], 0.3)
    record("ibot", ibot_loss(patches[mask], patch_targets, mask.flatten(0, 1)), patches)
    features = given["features"].clone().requires_grad_()
    record("koleo", koleo_loss(features), features)
    voxels = given["voxels"].clone().requires_grad_()
    record("pixel", reconstruction_loss(voxels[mask], patches.detach()[mask]), voxels)
    return results


def rank_results() -> dict:
    half = IMAGES // 2
    part = slice(distributed.rank() * half, (distributed.rank() + 1) * half)
    results: dict = {"objectives": objectives(part)}
    for name, counts in UNEVEN.items():
        rows = uneven_rows(sum(counts)).split(counts)[distributed.rank()]
        centre = Centre(PROTOTYPES)
        centre.observe(rows)
        centre.apply()
        results[name] = (sinkhorn_knopp(rows, 0.05), sinkhorn_knopp(rows.float(), 0.05), centre.value)
    results["one image"] = lonely_koleo()
    return results


def uneven_rows(count: int) -> Tensor:
    return torch.randn(count, PROTOTYPES, generator=torch.Generator().manual_seed(count), dtype=torch.float64)


def lonely_koleo() -> tuple[Tensor, Tensor]:
    """One image a rank: the neighbour is on the other rank."""
    features = inputs()["features"][distributed.rank()][None].clone().requires_grad_()
    loss = koleo_loss(features)
    loss.backward()
    assert features.grad is not None
    return loss.detach(), features.grad


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return run_ranks(rank_results)


@pytest.mark.parametrize("name", ["dino", "ibot", "koleo", "pixel"])
def test_the_mean_over_ranks_is_the_value_on_the_whole_batch(ranks, name):
    value, gradient = objectives(slice(None))[name]
    values = [rank["objectives"][name][0] for rank in ranks]
    torch.testing.assert_close(torch.stack(values).mean(), value, rtol=1e-12, atol=1e-13)
    # An engine averages gradients over ranks: each rank's own rows carry twice their share before that.
    axis = 0 if name == "koleo" else 1
    gradients = torch.cat([rank["objectives"][name][1] for rank in ranks], dim=axis) / 2
    torch.testing.assert_close(gradients, gradient, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", UNEVEN)
def test_balancing_and_centring_pool_the_rows_of_all_ranks(ranks, name):
    rows = uneven_rows(sum(UNEVEN[name]))
    together = [torch.cat([rank[name][i] for rank in ranks]) for i in (0, 1)]
    torch.testing.assert_close(together[0], sinkhorn_knopp(rows, 0.05), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(together[1], sinkhorn_knopp(rows.float(), 0.05), rtol=1e-4, atol=1e-6)
    centre = Centre(PROTOTYPES)
    centre.observe(rows)
    centre.apply()
    for rank in ranks:
        torch.testing.assert_close(rank[name][2], centre.value)
    assert torch.equal(ranks[0][name][2], ranks[1][name][2])


def test_a_neighbour_on_another_rank_is_found(ranks):
    features = inputs()["features"][:2].clone().requires_grad_()
    loss = koleo_loss(features)
    loss.backward()
    torch.testing.assert_close(torch.stack([r["one image"][0] for r in ranks]).mean(), loss.detach())
    gradients = torch.cat([r["one image"][1] for r in ranks]) / 2
    torch.testing.assert_close(gradients, features.grad, rtol=1e-10, atol=1e-13)
