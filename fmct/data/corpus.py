"""What a run was trained on, as a fingerprint: another corpus under the same paths is another run."""

from collections.abc import Sequence
from hashlib import sha256

from fmct.data.sampler import StoreConfig, select
from fmct.errors import ConfigError
from fmct.store import Store


def chosen_stores(store: str, stores: Sequence[StoreConfig]) -> list[StoreConfig]:
    """Return the stores to draw from: `store` is short for one entry of `stores`. Raises ConfigError for both."""
    if store and stores:
        raise ConfigError("store= is short for one entry of data.stores, but both are given. Leave one out.")
    return [StoreConfig(path=store)] if store else list(stores)


def fingerprints(stores: Sequence[StoreConfig]) -> dict[str, str]:
    """Return, by store path, a hash of the content of the series that a run draws from, in their order.

    Splits and filters count: what they leave out is not part of it. Raises DataError when nothing is left.
    """
    found = {}
    for config in stores:
        with Store.open(config.path) as store:
            contents = [entry.content_hash for entry in select(store, config)]
        found[config.path] = sha256("\n".join(contents).encode()).hexdigest()
    return found
