"""Convolutions in three dimensions whose bf16 gradients are wrong on a CPU are computed in fp32.

oneDNN's bf16 weight gradient of a kernel that is deeper than its input (3 over a depth of 2, 5 over 2 to 4) is what was
left in memory: finite and wrong, infinite, or a crash. A network that ends in few voxels has such a layer. Its forward
pass is right, so training alone is guarded; the other two dimensions, a depth of 1, and fp32 are right too.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_GUARDED = (functional.conv3d, functional.conv_transpose3d)


@contextmanager
def autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Enter what a training step's forward pass runs in: autocast to bf16, or nothing for fp32."""
    lower = dtype == torch.bfloat16
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=lower), sound(device, dtype):
        yield


def sound(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return the guard, where the device and the type of autocast need it."""
    return SoundConvolutions() if device.type == "cpu" and dtype == torch.bfloat16 else nullcontext()


class SoundConvolutions(TorchFunctionMode):
    """Within it, convolutions (B, C, D, H, W) with 1 < D < the kernel's depth are computed in fp32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a torch function, in fp32 where it is one of these convolutions."""
        kwargs = kwargs or {}
        if func in _GUARDED and 1 < args[0].shape[2] < args[1].shape[2]:
            with torch.autocast("cpu", enabled=False):
                return func(*(a.float() if isinstance(a, Tensor) else a for a in args), **kwargs)
        return func(*args, **kwargs)
