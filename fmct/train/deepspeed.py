"""The DeepSpeed engine: ZeRO 0, 1 and 2 with fp32 parameters and bf16 compute. The only user of deepspeed.

ZeRO-3 is refused: its partitioned parameters need a partitioned fp32 teacher, which is not built. DeepSpeed's own
checkpoint files are not used: parameters and moments are given out whole, by name, so that any world size reads them.
"""

import atexit
import importlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from fmct import distributed
from fmct.errors import ConfigError
from fmct.train.convolutions import sound
from fmct.train.engine import MOMENTS, EngineConfig, Tally, Update, norms_by_module, poisoned
from fmct.train.optim import OptimConfig, apply_values, build_optimizer
from fmct.train.task import TaskOutput

STAGES = (0, 1, 2)
# Numbers whose gradients are reduced together: DeepSpeed's own default; on a CPU 16 MB, which the allocator gives again
# at every update, while a copy of all gradients (300 MB of ViT-S with its heads) is often memory never touched before.
LARGEST_BUCKET = {"cuda": 500_000_000, "cpu": 4_000_000}


@contextmanager
def _without_warnings() -> Iterator[None]:
    """DeepSpeed calls what torch has deprecated, at every update: nothing that a user could mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def import_deepspeed(device: torch.device) -> ModuleType:
    """Return the deepspeed module, quiet, and with its shared-memory CPU collective (a 27 s compile) switched off."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        with _without_warnings():
            import deepspeed
            import deepspeed.ops
            import deepspeed.utils.logging
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"engine.kind=deepspeed: {error.name} is not installed. Install fmct[train], or take engine.kind=torch, "
            "which trains the same model with every parameter and moment on every rank."
        ) from None
    _import_muon_uncompiled()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon with torch.compile off: nobody here calls it.

    DeepSpeed does so in every engine, to see that an optimiser is not Muon. The decorators of that module import
    torch's compiler, 1.6 of the 6.7 seconds that a toy's engine took from the start of its process (an EPYC's core).
    """
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        with suppress(ImportError), _without_warnings():  # of another version: DeepSpeed goes without it, too
            importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before


def deepspeed_config(
    *, stage: int, clip: float, accumulate: int, dtype: torch.dtype, device: torch.device, trained: int
) -> dict[str, Any]:
    """Return DeepSpeed's configuration. Gradients travel in fp32: no module is marked safe for a lower precision.

    trained: how many numbers are trained. DeepSpeed asks for the memory of a whole bucket in every backward pass, 2 GB
    in fp32 by its default whatever the model, 4 GB where communication overlaps: no more than the model has is needed.
    A gradient larger than the bucket is reduced where it is.
    """
    largest = LARGEST_BUCKET["cpu" if device.type == "cpu" else "cuda"]
    zero = {"stage": stage, "overlap_comm": device.type == "cuda", "contiguous_gradients": True}
    return {
        "train_micro_batch_size_per_gpu": 1,  # bookkeeping only: batches come from our loader
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": clip if stage > 0 else 0.0,
        "zero_optimization": {**zero, "reduce_bucket_size": max(1, min(largest, trained))},
        "torch_autocast": {
            "enabled": dtype == torch.bfloat16,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**62,
    }


class DeepSpeedEngine:
    """ZeRO-0/1/2 around a task and torch's AdamW. Works with and without other processes."""

    def __init__(
        self, task: nn.Module, *, config: EngineConfig, optim: OptimConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        if config.zero_stage not in STAGES:
            raise ConfigError(
                f"engine.zero_stage: {config.zero_stage} is not supported; expected 0, 1 or 2. ZeRO-3 cuts the "
                "parameters themselves into shards, and the fp32 teacher would need the same cut. Up to about a "
                "billion parameters ZeRO-1 or 2 is faster anyway."
            )
        deepspeed = import_deepspeed(device)
        self.task: Any = task.to(device)
        self.device = device
        self.dtype = dtype
        self.accumulate = config.accumulate
        self.updates = 0
        self._stage = config.zero_stage
        self._clip = optim.clip
        _ensure_process_group(device)
        _forget_groups_that_are_gone()
        optimizer = build_optimizer(self.task.named_parameters(), optim)
        settings = deepspeed_config(
            stage=self._stage, clip=optim.clip, accumulate=config.accumulate, dtype=dtype, device=device,
            trained=sum(p.numel() for p in self.task.parameters() if p.requires_grad),
        )  # fmt: skip
        with _without_warnings():
            self._engine: Any = deepspeed.initialize(model=self.task, optimizer=optimizer, config=settings)[0]
        self._trained = {name: p for name, p in self.task.named_parameters() if p.requires_grad}
        self._tally = Tally()

    def forward(self, batch: Any, values: Mapping[str, float]) -> TaskOutput:
        """Return the task's output, through DeepSpeed's hooks and autocast."""
        with sound(self.device, self.dtype):
            output = self._engine(batch, values)
        self._tally.add(output)
        return output

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient, divided by the accumulation steps; at the boundary it is reduced over ranks."""
        with _without_warnings():
            self._engine.backward(poisoned(loss))

    def step(self, values: Mapping[str, float], *, stop: bool = False) -> Update | None:
        """Agree and update; None while accumulating."""
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
            return None
        apply_values(self._engine.optimizer.param_groups, values)
        with _without_warnings():
            update = self._step_unpartitioned(stop) if self._stage == 0 else self._step_partitioned(stop)
        self.updates += update.applied
        self._tally = Tally()
        return update

    def moments(self) -> dict[str, Tensor]:
        """Return AdamW's moments of every trained parameter, gathered from all ranks; zeros before the first update."""
        from deepspeed.utils import safe_get_full_optimizer_state

        found = {}
        if self._stage > 0 and self.updates > 0:
            self._link_moments()
        for name, parameter in self._trained.items():
            for key in MOMENTS:
                if self.updates == 0:
                    whole: Any = torch.zeros_like(parameter)
                elif self._stage == 0:
                    whole = self._engine.optimizer.state[parameter][key]
                else:
                    whole = safe_get_full_optimizer_state(parameter, key)
                found[f"{key}/{name}"] = whole.detach().to("cpu", torch.float32, copy=True).view_as(parameter)
        return found

    def load(self, parameters: Mapping[str, Tensor], moments: Mapping[str, Tensor], updates: int) -> None:
        """Take parameters, moments and the number of updates; each rank keeps its partition."""
        from deepspeed.utils import safe_set_full_optimizer_state

        self.task.load_state_dict(dict(parameters))
        self.updates = updates
        steps = torch.tensor(float(updates), device=self.device)
        if self._stage == 0:
            for name, parameter in self._trained.items():
                state = {key: moments[f"{key}/{name}"].to(self.device, copy=True) for key in MOMENTS}
                self._engine.optimizer.state[parameter] = {"step": steps.clone(), **state}
            return
        zero = self._engine.optimizer
        zero.refresh_fp32_params()
        if updates == 0:
            return
        for partition in zero.single_partition_of_fp32_groups:
            state = zero.optimizer.state[partition]
            state["step"] = steps.clone()
            for key in MOMENTS:
                state.setdefault(key, torch.zeros_like(partition))
        self._link_moments()
        for name, parameter in self._trained.items():
            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, moments[f"{key}/{name}"].to(self.device), key)

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers. A process group of one stays: DeepSpeed remembers it."""
        self._engine.destroy()

    def _link_moments(self) -> None:
        """Link every parameter to its moments. DeepSpeed does so once, inside the first step, when only the first
        group of torch's AdamW has any (0.19.8)."""
        self._engine.optimizer._hp_optimizer_states_linked = False
        self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _step_unpartitioned(self, stop: bool) -> Update:
        """Stage 0: DeepSpeed has averaged the gradients in place; it neither checks nor reports them, so we do."""
        gradients = {name: p.grad for name, p in self._trained.items() if p.grad is not None}
        norm, by_module = norms_by_module(gradients)
        update = self._tally.agree(stop=stop, grad_norm=norm, device=self.device)
        if not update.applied:
            for parameter in self._trained.values():
                parameter.grad = None  # AdamW passes over a parameter without gradient
        else:
            if self._clip > 0:
                clip_grads_with_norm_(self._trained.values(), self._clip, norm)
            update.grad_norms.update({name: float(value) for name, value in by_module.items()})
        self._engine.step()
        return update

    def _step_partitioned(self, stop: bool) -> Update:
        """Stages 1 and 2: DeepSpeed takes the norm over partitions, clips, and skips when it is not finite."""
        self._engine.step()
        applied = self._engine.was_step_applied()
        norm = self._engine.get_global_grad_norm() if applied else float("nan")
        assert norm is not None
        update = self._tally.agree(stop=stop, grad_norm=norm, device=self.device)
        assert update.applied == applied, "DeepSpeed and the agreed flags differ on whether the update was applied"
        return update


def _ensure_process_group(device: torch.device) -> None:
    """Make a process group of one where there is none, as DeepSpeed needs one; it is left when the process ends."""
    # DeepSpeed asks for these two even when the group exists; more would make this process look launched.
    os.environ.setdefault("LOCAL_RANK", str(distributed.rank()))
    os.environ.setdefault("LOCAL_SIZE", str(distributed.world_size()))
    if distributed.is_initialised():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = torch.distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    atexit.register(distributed.finalise)


def _forget_groups_that_are_gone() -> None:
    """Empty DeepSpeed's cache of groups when the process group that they belonged to was left.

    A second run in one process has another process group; torch's own way to leave the first one does not tell
    DeepSpeed (0.19.8), which then looks for the ranks of a group that torch has forgotten.
    """
    from deepspeed.utils import groups

    cached = groups._WORLD_GROUP
    registered = torch.distributed.distributed_c10d._world.pg_group_ranks
    if cached is not None and cached not in registered:
        groups._WORLD_GROUP = None
