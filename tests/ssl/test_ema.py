import copy

import pytest
import torch
from torch import nn

from fmct.errors import ConfigError
from fmct.ssl.ema import copy_weights, relative_distance, update_average


class Small(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.register_buffer("periods", torch.randn(2))
        self.register_buffer("count", torch.tensor(seed))


def test_many_updates_follow_the_closed_form():
    student, teacher = Small(0), Small(1)
    start = teacher.linear.weight.detach().double().clone()
    momenta = torch.linspace(0.9, 0.99, 40).tolist()
    path = []
    for step, momentum in enumerate(momenta):
        with torch.no_grad():
            student.linear.weight.copy_(torch.full((4, 3), float(step)))
        path.append(student.linear.weight.detach().double().clone())
        update_average(teacher, student, momentum)
    expected = torch.tensor(momenta, dtype=torch.float64).prod() * start
    for step, value in enumerate(path):
        remains = torch.tensor(momenta[step + 1 :], dtype=torch.float64).prod()
        expected = expected + (1 - momenta[step]) * remains * value
    torch.testing.assert_close(teacher.linear.weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_momentum_zero_copies_and_one_keeps():
    student, teacher = Small(0), Small(1)
    before = copy.deepcopy(teacher)
    update_average(teacher, student, 1.0)
    assert torch.equal(teacher.linear.weight, before.linear.weight)
    update_average(teacher, student, 0.0)
    assert torch.equal(teacher.linear.weight, student.linear.weight)


def test_buffers_are_copied_not_averaged():
    student, teacher = Small(0), Small(1)
    update_average(teacher, student, 0.9)
    assert torch.equal(teacher.periods, student.periods)  # type: ignore[arg-type]
    assert torch.equal(teacher.count, student.count)  # type: ignore[arg-type]


def test_a_bf16_average_would_stand_still_and_is_refused():
    student = torch.ones(1000) * 1.01
    half = torch.ones(1000, dtype=torch.bfloat16)
    full = torch.ones(1000)
    for _ in range(1000):
        half.lerp_(student.bfloat16(), 1e-3)
        full.lerp_(student, 1e-3)
    assert torch.equal(half, torch.ones(1000, dtype=torch.bfloat16))  # not a step in a thousand
    torch.testing.assert_close(full, torch.full((1000,), 1.01 - 0.01 * 0.999**1000), rtol=1e-4, atol=0)
    with pytest.raises(ConfigError, match="bfloat16"):
        update_average(Small(0).bfloat16(), Small(1), 0.999)


def test_a_fp32_teacher_follows_a_bf16_student():
    student, teacher = Small(0), Small(1)
    start = teacher.linear.weight.detach().clone()
    update_average(teacher, copy.deepcopy(student).bfloat16(), 0.999)
    expected = 0.999 * start + 0.001 * student.linear.weight.bfloat16().float()
    torch.testing.assert_close(teacher.linear.weight, expected)


def test_a_name_that_the_student_lacks_is_an_error():
    with pytest.raises(ConfigError, match=r"linear\.bias"):
        update_average(Small(0), nn.Linear(3, 4), 0.9)


def test_copied_weights_are_exact():
    student, teacher = Small(0), Small(1)
    copy_weights(teacher, student)
    copied = teacher.state_dict()
    assert all(torch.equal(copied[name], value) for name, value in student.state_dict().items())


def test_relative_distance_is_that_of_the_flat_vectors():
    student, teacher = Small(0), Small(1)

    def flat(module: nn.Module) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    expected = (flat(student) - flat(teacher)).norm() / flat(student).norm()
    torch.testing.assert_close(relative_distance(teacher, student), expected)
    assert relative_distance(student, student).item() == 0.0
