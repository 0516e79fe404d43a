"""B.13, 4, 5 and 8: what a teacher says, that it does not move, and that losses are sums."""

import copy

import numpy as np
import pytest
import torch

from fmct.data.lesion_patches import Item, PatchBatch, collate
from fmct.errors import ArtefactError, ConfigError
from fmct.models.lesion_networks import ConvJudge
from fmct.models.lesion_segmenter import LesionNetworkConfig
from fmct.tasks.lesion_discrimination import (
    DistillationConfig,
    PatchObjective,
    Student,
    Teacher,
    TeacherObjective,
    target_of,
)
from fmct.tasks.lesion_proposal import LesionProposal, VoxelObjective, build_network, describe_network, load_trained
from fmct.train.task import Task


def batch(count: int = 4) -> PatchBatch:
    random = np.random.default_rng(0)
    items = [Item(f"s{n}", (0, 0, 0), n % 2 == 0) for n in range(count)]
    patches = []
    for item in items:
        channels = random.normal(size=(2, 8, 8, 8)).astype(np.float32)
        lesions = np.zeros((8, 8, 8), dtype=bool)
        lesions[3:5, 3:5, 3:5] = item.positive
        channels[0] += 3 * lesions
        patches.append((channels, lesions))
    return collate(items, patches, [(1.0, 1.0, 1.0)] * count, range(count), "cpu")


def judge(*, voxels: bool, seed: int = 0, kind: str = "batch") -> ConvJudge:
    torch.manual_seed(seed)
    return ConvJudge(width=4, kind=kind, voxels=voxels)


def test_a_teacher_is_bit_equal_after_a_student_epoch() -> None:
    """B.13, 5 and B-D5: no gradient, and batch-norm buffers that do not drift, though the student is in training."""
    teacher = judge(voxels=True)
    before = copy.deepcopy(teacher.state_dict())
    student = Student(judge(voxels=False, seed=1), teacher, DistillationConfig(features=0.5))
    assert isinstance(student, Task)
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    moved = copy.deepcopy(student.network.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        student(batch(), {}).loss.backward()
        optimizer.step()
    assert set(before) == set(teacher.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any("teacher" in name for name in student.state_dict())  # neither trained nor saved
    assert any(not torch.equal(value, moved[name]) for name, value in student.network.state_dict().items())
    assert all(p.grad is not None for p in student.project.parameters())


def test_a_sigmoid_teacher_says_nothing_once_it_is_softened() -> None:
    """B.13, 4 and B-D3: at T = 4 no soft label of probabilities exceeds .5622; of logits (0, 10) it exceeds .9."""
    logits = torch.tensor([[0.0, 10.0], [-50.0, 50.0], [3.0, -3.0]])
    legacy = (logits.sigmoid() / 4).softmax(1)
    assert legacy.max() <= 0.5622
    assert (logits[0] / 4).softmax(0)[1] > 0.9
    teacher = judge(voxels=True, kind="group")
    with torch.no_grad():
        teacher.head.layers[-1].bias.copy_(torch.tensor([-20.0, 20.0]))
    said = {}
    for output in ("logits", "legacy_sigmoid"):
        student = Student(judge(voxels=False), teacher, DistillationConfig(teacher_output=output))
        given, _ = student._taught(batch(), torch.zeros(4, 2))
        said[output] = float((given / 4).softmax(1)[:, 1].max())
    assert said["logits"] > 0.99
    assert said["legacy_sigmoid"] <= 0.5622


def test_alpha_0_never_asks_the_teacher() -> None:
    student = Student(judge(voxels=False), judge(voxels=True), DistillationConfig(alpha=0.0))
    student.teacher.forward = None  # type: ignore[method-assign, assignment]
    output = student(batch(), {})
    wanted = torch.nn.functional.cross_entropy(
        student.network(batch().volumes).patch, batch().wanted.long()
    )  # in training mode: batch statistics, so the same numbers
    assert output.terms["distillation"].item() == pytest.approx(wanted.item(), rel=1e-5)


def gradients(objective: TeacherObjective) -> dict[str, torch.Tensor]:
    task = Teacher(judge(voxels=True), objective)
    task(batch(), {}).loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in task.named_parameters()}


def test_the_teachers_loss_is_a_sum() -> None:
    """B.13, 8: zeroing either weight removes exactly its gradient."""
    both = gradients(TeacherObjective())
    voxels, patch = gradients(TeacherObjective(classification=0.0)), gradients(TeacherObjective(segmentation=0.0))
    for name in both:
        torch.testing.assert_close(both[name], voxels[name] + patch[name], atol=1e-5, rtol=1e-4)
    assert all(not value.any() for name, value in voxels.items() if "head" in name)
    assert all(not value.any() for name, value in patch.items() if "decoder" in name)
    assert any(value.any() for name, value in patch.items() if "head" in name)


def test_a_patch_is_called_by_its_candidate_or_by_any_voxel() -> None:
    mixed = batch()
    mixed = PatchBatch(**{**vars(mixed), "wanted": 1 - mixed.wanted})
    assert target_of(mixed, PatchObjective()).tolist() == [0, 1, 0, 1]
    assert target_of(mixed, PatchObjective(target="any")).tolist() == [1, 0, 1, 0]
    with pytest.raises(ConfigError, match="target"):
        PatchObjective(target="all")


def test_a_detector_learns_what_it_is_shown() -> None:
    torch.manual_seed(0)
    network = build_network(describe_network(LesionNetworkConfig(width=4), voxels=True, patch=False))
    task, seen = LesionProposal(network, VoxelObjective()), batch()
    optimizer = torch.optim.Adam(task.parameters(), lr=0.03)
    first = task(seen, {}).loss.item()
    for _ in range(25):
        optimizer.zero_grad()
        loss = task(seen, {}).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < first - 0.3
    again = build_network(describe_network(LesionNetworkConfig(width=4), voxels=True, patch=False))
    load_trained(again, task.state_dict())
    torch.testing.assert_close(again(seen.volumes).voxels, network.eval()(seen.volumes).voxels)
    with pytest.raises(ArtefactError, match="do not fit"):
        load_trained(
            build_network(describe_network(LesionNetworkConfig(width=8), voxels=True, patch=False)), task.state_dict()
        )


def test_distillation_settings_are_checked() -> None:
    for wrong in ({"temperature": 0.0}, {"alpha": 1.5}, {"features": -1.0}, {"teacher_output": "sigmoid"}):
        with pytest.raises(ConfigError, match="distil"):
            DistillationConfig(**wrong)  # type: ignore[arg-type]
