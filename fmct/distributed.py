"""Ranks and collectives. Everything works without a process group too: then there is one rank."""

import datetime
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist


def is_initialised() -> bool:
    """Return whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's rank, 0 without a process group."""
    return dist.get_rank() if is_initialised() else 0


def world_size() -> int:
    """Return the number of ranks, 1 without a process group."""
    return dist.get_world_size() if is_initialised() else 1


def initialise(timeout_s: float = 600.0) -> torch.device:
    """Join the process group that the launcher's environment names, if any, and return this rank's device.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT (torchrun, deepspeed, `fmct … --nproc`) or SLURM's own
    variables (srun, see `slurm_environment`). NCCL on GPUs, gloo on CPUs.
    """
    os.environ.update(slurm_environment(os.environ))
    cuda = torch.cuda.is_available()
    # A scheduler may show each task only its own GPU: then every local rank has number 0.
    local = int(os.environ.get("LOCAL_RANK", "0")) % (torch.cuda.device_count() if cuda else 1)
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not is_initialised():
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            timeout=datetime.timedelta(seconds=timeout_s),
            device_id=device if cuda else None,
        )
    return device


def slurm_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the launcher variables that are missing in a task that srun started as one of several; else nothing.

    The first host of the step is the meeting place; the port follows from the job's number. A batch script or an
    interactive shell is no such task, whatever SLURM_NTASKS says there.
    """
    if "RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return {}
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split(",")[0].split("(")[0],
        "MASTER_ADDR": first_host(environment.get("SLURM_STEP_NODELIST", "127.0.0.1")),
        "MASTER_PORT": str(20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000),
    }
    return {name: value for name, value in found.items() if name not in environment}


def first_host(nodes: str) -> str:
    """Return the first host of SLURM's short form, such as gpu-003 of `gpu-[003-010,012],cpu1`."""
    name, bracket, rest = nodes.partition("[")
    if not bracket or "," in name:
        return name.split(",")[0]
    inside, _, after = rest.partition("]")
    return name + re.split(r"[-,]", inside)[0] + after.split(",")[0]


def finalise() -> None:
    """Leave the process group, if there is one."""
    if is_initialised():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for every rank."""
    if is_initialised():
        dist.barrier()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum over all ranks of `tensor`, without gradient; the argument is not changed."""
    total = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def max_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Return the maximum over all ranks of `tensor`, without gradient; the argument is not changed."""
    largest = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


class _Gather(torch.autograd.Function):
    """Concatenation over ranks whose backward sums every rank's gradient for this rank's part."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        """Return every rank's rows."""
        ctx.rows = len(tensor)
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """Return what all ranks ask of this rank's rows."""
        start = rank() * ctx.rows
        return sum_over_ranks(gradients[0])[start : start + ctx.rows]


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Return the (W·B, ...) concatenation over ranks of equally shaped (B, ...) tensors; gradients flow back."""
    if world_size() == 1:
        return tensor
    return _Gather.apply(tensor)  # type: ignore[return-value]


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Return the (W·B, ...) concatenation over ranks of equally shaped (B, ...) tensors, without gradient."""
    if world_size() == 1:
        return tensor.detach()
    tensor = tensor.detach().contiguous()
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


def gather_objects(value: Any) -> list[Any]:
    """Return the list of every rank's `value` (picklable), in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
