"""The store: a corpus on its native grid, in sealed HDF5 shards with a resolution pyramid and a manifest."""

from fmct.store.manifest import Entry, Level
from fmct.store.reader import Store, is_store

__all__ = ["Entry", "Level", "Store", "is_store"]
