"""What a run was trained on, as a fingerprint: another corpus under the same paths is another run."""

from collections.abc import Sequence
from hashlib import sha256

from fmct.data.sampler import StoreConfig, select
from fmct.store import Store


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
