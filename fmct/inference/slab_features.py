"""The features of series' slabs under one frozen slab network, kept on disk: what stage two trains on, computed once.

A file is named by the series' content and lies in a folder named by what else decides its values: weights and
preprocessing. Values are float16.
"""

import hashlib
import json
import os
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fmct.data.sample import Sample
from fmct.data.series import scan_of_entry
from fmct.errors import DataError
from fmct.inference.slab_series import slab_series
from fmct.precision import compute_dtype
from fmct.preprocess import Preprocessing
from fmct.store.reader import Store

_DIGITS = 24
_KEPT_BYTES = 1 << 30  # of features in memory


def weights_fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """Return a SHA-256 of named weights."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class SlabFeatures:
    """Features by series, made on demand by a slab network in evaluation mode on its own device."""

    def __init__(self, folder: str | Path, network: nn.Module, preprocessing: Preprocessing, store: Store) -> None:
        described = json.dumps(preprocessing.to_dict(), sort_keys=True) + weights_fingerprint(network.state_dict())
        self.folder = Path(folder) / f"slabs-{hashlib.sha256(described.encode()).hexdigest()[:_DIGITS]}"
        self._network, self._preprocessing, self._store = network, preprocessing, store
        self._precision = ""
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __call__(self, sample: Sample) -> torch.Tensor:
        """Return a series' (T, C, gh, gw) float32 on the CPU. Raises DataError for one that cannot be read or kept."""
        name = sample.entry.content_hash[:_DIGITS]
        if name not in self._kept:
            path = self.folder / f"{name}.npz"
            found = _read(path)
            if found is None:
                found = self._compute(sample)
                _write(path, found)
            self._kept[name] = torch.from_numpy(found)
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(name)
        return self._kept[name].float()

    def _compute(self, sample: Sample) -> np.ndarray:
        device = next(self._network.parameters()).device
        if not self._precision:  # asked once: the answer is logged
            self._precision = "bf16" if compute_dtype("auto", device) == torch.bfloat16 else "fp32"
        try:
            scan = scan_of_entry(self._preprocessing, self._store, sample.entry)
            slabs = slab_series(self._network, self._preprocessing, scan, device=device, precision=self._precision)
        except DataError as error:
            raise DataError(f"series {sample.entry.id} of patient {sample.patient}: {error}") from None
        return slabs.features.half().numpy()


def _read(path: Path) -> np.ndarray | None:
    """Return a file's features; None when it is absent or was cut short, since it can be made again."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["features"]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def _write(path: Path, features: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, features=features)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path.parent}: cannot be written ({error.strerror}). Give another features=FOLDER.") from None
    finally:
        temporary.unlink(missing_ok=True)
