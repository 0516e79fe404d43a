"""Stores opened for drawing: which store and entry a draw shows."""

from collections.abc import Sequence
from typing import Any

from fmct.data.sampler import Sampler, StoreConfig, check_modalities, select
from fmct.errors import ConfigError
from fmct.store import Store


class Source:
    """Stores, the ids of the entries to draw from, and the sampler. Picklable; it holds no voxels."""

    def __init__(self, stores: Sequence[Store], names: Sequence[Sequence[str]], sampler: Sampler) -> None:
        """names: of each store, the ids of the entries to draw from."""
        self._stores, self._names, self._sampler = list(stores), [list(n) for n in names], sampler

    @property
    def length(self) -> int:
        """The number of series."""
        return self._sampler.length

    def entry(self, draw: int) -> tuple[Store, Any]:
        """Return the (store, entry) that a draw shows."""
        number, index = self._sampler(draw)
        store = self._stores[number]
        return store, store.entry(self._names[number][index])


def open_sources(stores: Sequence[StoreConfig], *, seed: int, allow_mixed: bool = False) -> Source:
    """Return the stores of a configuration, opened. Raises ConfigError or DataError where one cannot be drawn from."""
    if not stores or any(not store.path for store in stores):
        raise ConfigError("data.stores: no store named. Add store=PATH to the command (fmct ingest makes one).")
    opened = [Store.open(config.path) for config in stores]
    entries = [select(store, config) for store, config in zip(opened, stores, strict=True)]
    check_modalities([entry.modality for chosen in entries for entry in chosen], allow_mixed=allow_mixed)
    sampler = Sampler([len(chosen) for chosen in entries], weights=_weights(stores), seed=seed)
    return Source(opened, [[entry.id for entry in chosen] for chosen in entries], sampler)


def _weights(stores: Sequence[StoreConfig]) -> list[float] | None:
    given = [store.weight for store in stores if store.weight is not None]
    if given and len(given) != len(stores):
        raise ConfigError(
            "data.stores: give a weight for every store or for none (then each has its number of series)."
        )
    return given or None
