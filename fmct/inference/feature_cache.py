"""What a frozen encoder makes of a series, kept on disk: computed once for an encoder, a preprocessing and a series.

A file is named by the series' content and lies in a folder named by everything else that decides its values, so a
changed weight, window or scan is another file, never an old answer.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from fmct.config import plain
from fmct.data.finding_batches import KeptRows, Rows
from fmct.errors import ConfigError, DataError
from fmct.inference.embed import scan_of_entry
from fmct.publish.load import PublishedEncoder
from fmct.store.manifest import Entry
from fmct.store.reader import Store

KINDS = ("pooled", "tokens", "inputs")
_DIGITS = 24


def encoder_fingerprint(encoder: PublishedEncoder) -> str:
    """Return a SHA-256 of an encoder's weights and configuration."""
    digest = hashlib.sha256(json.dumps(plain(encoder.config), sort_keys=True).encode())
    for name, value in sorted(encoder.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class FeatureCache:
    """Arrays of series by kind, made on demand.

    pooled: vector (2E,) float32 of [cls, mean patch], over the tiles of the series as its embedding is. tokens: patches
    (N, E) float16 and cls (E,) float32, for an encoder whose input is one tile. inputs: volume (C, D, H, W) float16 and
    spacing (3,) mm, what a tile's tokens come from; these do not depend on the weights.
    """

    def __init__(self, folder: str | Path, encoder: PublishedEncoder, kind: str) -> None:
        if kind not in KINDS:
            raise ConfigError(f"feature cache: kind is one of {', '.join(KINDS)}, got {kind!r}.")
        self.encoder = encoder
        self.kind = kind
        description = json.dumps([kind, encoder.preprocessing.to_dict()], sort_keys=True)
        weights = "" if kind == "inputs" else encoder_fingerprint(encoder)
        name = hashlib.sha256(f"{description}{weights}".encode()).hexdigest()[:_DIGITS]
        self.folder = Path(folder) / f"{kind}-{name}"

    def of(self, store: Store, entries: Sequence[Entry]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the arrays of each entry, in order; what is not there yet is computed and kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for entry in entries:
            path = self.folder / f"{entry.content_hash[:_DIGITS]}.npz"
            arrays = _read(path)
            if arrays is None:
                arrays = self._compute(store, entry)
                _write(path, arrays)
            yield arrays

    def _compute(self, store: Store, entry: Entry) -> dict[str, np.ndarray]:
        encoder = self.encoder
        batches = encoder.preprocessing.batches(
            scan_of_entry(encoder.preprocessing, store, entry), batch_size=encoder.batch_size(), device=encoder.device
        )
        if self.kind == "pooled":
            return {"vector": encoder.embed_tiles(batches).vector}
        tiles = list(batches)
        if len(tiles) != 1 or len(tiles[0].tensor) != 1:
            raise DataError(
                f"series {entry.id} is {sum(len(part.tensor) for part in tiles)} tiles to this encoder; {self.kind} "
                "are kept for encoders that take a series as one input. Use pooled features (a linear head)."
            )
        volume, spacing = tiles[0].tensor, tiles[0].spacing_mm
        if self.kind == "inputs":
            return {"volume": volume[0].half().cpu().numpy(), "spacing": spacing[0].numpy()}
        output = encoder(volume, spacing=spacing)
        return {"cls": output.cls[0].float().cpu().numpy(), "patches": output.patches[0].half().cpu().numpy()}


class CachedRows:
    """One array of many series, (S, …), read from the cache when rows are asked for; memory holds what was asked."""

    def __init__(self, cache: FeatureCache, store: Store, entries: Sequence[Entry], name: str) -> None:
        self._cache, self._store, self._entries, self._name = cache, store, list(entries), name

    def taken(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (M, …) arrays of the series with these numbers."""
        wanted = [self._entries[number] for number in rows.tolist()]
        arrays = [arrays[self._name] for arrays in self._cache.of(self._store, wanted)]
        return torch.from_numpy(np.stack(arrays))


def head_arrays(cache: FeatureCache, store: Store, entries: Sequence[Entry]) -> dict[str, Rows]:
    """Return what heads read of these series, by name, each (S, …), after making what the cache lacks.

    pooled: cls (S, E), in memory. tokens: cls and patches; inputs: volume and spacing, both read when asked for.
    """
    if cache.kind == "pooled":
        width = cache.encoder.num_features
        vectors = np.stack([arrays["vector"][:width] for arrays in cache.of(store, entries)])
        return {"cls": KeptRows(torch.from_numpy(vectors))}
    for _ in cache.of(store, entries):
        pass
    names = ("cls", "patches") if cache.kind == "tokens" else ("volume", "spacing")
    return {name: CachedRows(cache, store, entries, name) for name in names}


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """Return a file's arrays; None when it is absent or was cut short, since it can be made again."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path.parent}: cannot be written ({error.strerror}). Give another cache=FOLDER.") from None
    finally:
        temporary.unlink(missing_ok=True)
