"""Large CPU tensors used again once nobody holds them: fresh memory costs more in page faults than a view to render."""

import weakref
from collections.abc import Sequence

import numpy as np
import torch


class Recycler:
    """Gives out uninitialised float32 tensors; the memory comes back once no view of one is left."""

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}

    def take(self, shape: Sequence[int]) -> torch.Tensor:
        """Return a tensor of `shape`, exclusively the caller's for as long as anything refers to it."""
        size = int(np.prod(shape))
        free = self._free.setdefault(size, [])
        memory = free.pop() if free else np.empty(size, dtype=np.float32)
        # A tensor's storage keeps this very array object alive, through all views and autograd; its end is our sign.
        lease = memory.view()
        weakref.finalize(lease, free.append, memory).atexit = False
        return torch.from_numpy(lease).view(*shape)
