"""The exponential moving average that makes the teacher: fp32, local, after an optimiser update only.

In bf16 a teacher does not move: at momentum 0.999 the change is below the rounding step. Hence parameters are fp32.
"""

import torch
from torch import Tensor, nn

from fmct.errors import ConfigError


@torch.no_grad()
def update_average(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move every teacher parameter θt to momentum · θt + (1 − momentum) · θs of the student's of the same name.

    Buffers are copied, not averaged. The student may hold more parameters than the teacher. Raises ConfigError when
    one of the teacher's is missing in the student or the teacher is not fp32 (or fp64).
    """
    averages, sources = matched(dict(teacher.named_parameters()), dict(student.named_parameters()))
    for average in averages:
        if average.dtype not in (torch.float32, torch.float64):
            raise ConfigError(f"the teacher is {average.dtype}: an average of it does not move. Keep it in fp32.")
    current = [source.to(average.dtype) for average, source in zip(averages, sources, strict=True)]
    torch._foreach_lerp_(averages, current, 1.0 - momentum)  # pyright: ignore[reportPrivateImportUsage]
    copies, sources = matched(dict(teacher.named_buffers()), dict(student.named_buffers()))
    for copy, source in zip(copies, sources, strict=True):
        copy.copy_(source)


@torch.no_grad()
def copy_weights(target: nn.Module, source: nn.Module) -> None:
    """Set the parameters and buffers of `target` to those of the same name in `source`, exactly."""
    for kind in (nn.Module.named_parameters, nn.Module.named_buffers):
        for copy, original in zip(*matched(dict(kind(target)), dict(kind(source))), strict=True):
            copy.copy_(original)


@torch.no_grad()
def relative_distance(teacher: nn.Module, student: nn.Module) -> Tensor:
    """Return ‖θs − θt‖ / ‖θs‖ over the teacher's parameters, a scalar: how far the student runs ahead."""
    averages, sources = matched(dict(teacher.named_parameters()), dict(student.named_parameters()))
    # Tensor by tensor: the difference of the whole model never lies in memory at once.
    gaps = [torch.linalg.vector_norm(s - a) for a, s in zip(averages, sources, strict=True)]
    norms = torch.stack([torch.linalg.vector_norm(s) for s in sources])
    return torch.linalg.vector_norm(torch.stack(gaps)) / torch.linalg.vector_norm(norms).clamp(min=1e-12)


def matched(wanted: dict[str, Tensor], available: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors of `wanted` and those of the same names in `available`. Raises ConfigError when one lacks."""
    missing = sorted(set(wanted) - set(available))
    if missing:
        raise ConfigError(
            f"the student has no {missing[0]} (and {len(missing) - 1} more names) that the teacher has: build the "
            "teacher as a copy of the student."
        )
    return list(wanted.values()), [available[name] for name in wanted]
