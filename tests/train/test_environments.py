"""The same command under each launcher: what its environment becomes."""

import os

import pytest
import torch

from fmct import distributed
from fmct.distributed import first_host, slurm_environment

SRUN = {
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu-[007-008]", "SLURM_JOB_ID": "1234567",
}  # fmt: skip


def test_a_task_of_srun_joins_without_any_other_launcher() -> None:
    assert slurm_environment(SRUN) == {
        "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu-007", "MASTER_PORT": str(20000 + 1234567 % 20000),
    }  # fmt: skip


def test_what_the_user_set_stays() -> None:
    found = slurm_environment({**SRUN, "MASTER_ADDR": "here", "MASTER_PORT": "1"})
    assert "MASTER_ADDR" not in found
    assert "MASTER_PORT" not in found


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0", **SRUN},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "MASTER_ADDR": "here"},
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1"},
    ],
    ids=["no launcher", "torchrun inside srun", "the batch script", "an interactive shell"],
)
def test_others_are_no_tasks_of_srun(environment: dict[str, str]) -> None:
    assert slurm_environment(environment) == {}


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu-[003-010,012]", "gpu-003"), ("a[2,5]x", "a2x"), ("b7,gpu-[1-2]", "b7")],
)
def test_the_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_without_a_launcher_there_is_one_rank_and_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    before = distributed.is_initialised()
    assert distributed.initialise() == torch.device("cpu") or torch.cuda.is_available()
    assert distributed.is_initialised() == before
    assert os.environ.get("RANK") is None
