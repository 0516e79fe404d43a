"""Which series a draw shows: a keyed permutation per epoch, and an exact, deterministic mixture of several stores."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from fmct import randomness
from fmct.errors import ConfigError, DataError
from fmct.store.entry_table import read_entry_table

_OPERATORS = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_AXES = {"z": 0, "y": 1, "x": 2}


@dataclass(frozen=True)
class StoreConfig:
    """One store to draw from.

    weight: its share of the draws, relative to the others; give it for every store or for none (None: by number of
    series). filter: conditions that an entry has to meet, all of them, such as "modality=CT", "spacing_mm.z<=3",
    "shape.z>=32", "facts.kvp=120"; an entry without the field does not meet it. split: entries of this split of
    splits.csv; a store without splits is taken whole when this is train. Empty takes everything. table: a CSV with a
    row for every series of the store (column series: its id), whose columns a filter names as table.COLUMN, such as
    "table.decision=no" of an audit that `fmct curate contrast` wrote; an empty cell meets nothing.
    """

    path: str = ""
    weight: float | None = None
    filter: list[str] = field(default_factory=list)
    split: str = "train"
    table: str = ""


def meets(entry: Any, conditions: Sequence[str], row: Mapping[str, str] | None = None) -> bool:
    """Return whether an entry meets every condition `field OP value`; OP is = != < <= > >=. Raises ConfigError.

    row: the entry's row of a table, whose columns are the fields table.COLUMN.
    """
    for condition in conditions:
        name, compare, wanted = parse_condition(condition)
        if name.startswith("table."):
            value = _cell(row, name.removeprefix("table."), condition)
        else:
            value = _field(entry, name, condition)
        if value is None:
            return False
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            if compare not in (operator.eq, operator.ne):
                raise ConfigError(f"filter {condition!r}: {name} is text, which only = and != compare.")
            if not compare(str(value), wanted):
                return False
        elif not compare(float(value), _number(wanted, condition)):
            return False
    return True


def parse_condition(condition: str) -> tuple[str, Any, str]:
    """Return (field, comparison, value) of a condition. Raises ConfigError when it is not one."""
    for symbol, compare in _OPERATORS.items():
        name, found, value = condition.partition(symbol)
        if found and name.strip() and value.strip() and name.strip()[-1] not in "<>!=":
            return name.strip(), compare, value.strip()
    raise ConfigError(
        f"filter {condition!r}: expected a field, one of = != < <= > >=, and a value, such as spacing_mm.z<=3."
    )


def _number(text: str, condition: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"filter {condition!r}: expected a number, got {text!r}.") from None


def _cell(row: Mapping[str, str] | None, column: str, condition: str) -> str | float | None:
    """Return a cell of a table, as a number where it is one; None when empty. Raises ConfigError without the column."""
    if row is None or column not in row:
        known = "no table is named: give table=TABLE.csv beside the filter" if row is None else ", ".join(row)
        raise ConfigError(f"filter {condition!r}: no column {column!r} ({known}).")
    text = row[column].strip()
    try:
        return float(text) if text else None
    except ValueError:
        return text


def _field(entry: Any, name: str, condition: str) -> Any:
    """Return a dotted field of an entry, None when a mapping lacks it. Raises ConfigError for an unknown field."""
    value: Any = entry
    for part in name.split("."):
        if value is None:
            return None
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, (tuple, list)):
            if part not in _AXES:
                raise ConfigError(f"filter {condition!r}: {name}: name an axis, z, y or x, such as spacing_mm.z.")
            value = value[_AXES[part]]
        elif hasattr(value, part):
            value = getattr(value, part)
        else:
            raise ConfigError(f"filter {condition!r}: an entry has no field {name}. See a line of manifest.jsonl.")
    return value


def select(store: Any, config: StoreConfig) -> list[Any]:
    """Return the entries of a store that a run draws from, in manifest order. Raises DataError when there are none."""
    table = read_entry_table(config.table, store.entries) if config.table else {}
    entries = [entry for entry in store.entries if meets(entry, config.filter, table.get(entry.id))]
    if config.split:
        splits = store.splits()
        if splits:
            entries = [entry for entry in entries if splits.get(entry.id) == config.split]
        elif config.split != "train":
            raise DataError(
                f"{config.path}: no splits, but split {config.split!r} was asked for. Run: fmct split {config.path}"
            )
    if not entries:
        raise DataError(
            f"{config.path}: no series left of {len(store.entries)} with split {config.split!r} and filter "
            f"{config.filter}. Loosen them, or look at the manifest: fmct inspect {config.path}"
        )
    return entries


def check_modalities(modalities: Sequence[str], *, allow_mixed: bool) -> None:
    """Raise DataError when a run would mix modalities without having asked for that."""
    found = sorted(set(modalities))
    if len(found) > 1 and not allow_mixed:
        counts = ", ".join(f"{modalities.count(m)} {m}" for m in found)
        raise DataError(
            f"the stores mix modalities ({counts}), whose intensities mean different things. Filter for one, such as "
            f"filter: [modality={found[0]}], or set data.allow_mixed_modalities=true."
        )


class Sampler:
    """Maps a draw to (store, entry): pure, so that any process can ask for any draw."""

    def __init__(self, lengths: Sequence[int], *, weights: Sequence[float] | None = None, seed: int) -> None:
        """lengths: entries of each store. weights: each store's share of the draws (None: by its length)."""
        assert min(lengths, default=0) > 0, "a sampler needs entries"
        if weights is not None and (len(weights) != len(lengths) or min(weights) <= 0):
            raise ConfigError(f"data.stores: weights must be positive and one per store, got {list(weights)}.")
        shares = [Fraction(w) for w in (weights or lengths)]
        self._lengths, self._seed = list(lengths), seed
        # Store i takes its share of what stores 0 … i − 1 left.
        self._shares = [share / sum(shares[i:]) for i, share in enumerate(shares)]
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    @property
    def length(self) -> int:
        """The number of entries, which is one epoch of draws when the weights are the lengths."""
        return sum(self._lengths)

    def __call__(self, draw: int) -> tuple[int, int]:
        """Return (store number, entry number) of a draw.

        Draws are dealt to stores as evenly as integers allow: after n draws a store has had its share of n, to within
        one. Within a store every epoch is a permutation of its entries.
        """
        index = draw
        for store, share in enumerate(self._shares):
            before = index * share.numerator // share.denominator
            if (index + 1) * share.numerator // share.denominator > before:
                return store, self._entry(store, before)
            index -= before
        raise AssertionError("the last store takes every draw that is left")

    def _entry(self, store: int, index: int) -> int:
        epoch, position = divmod(index, self._lengths[store])
        cached = self._orders.get(store)
        if cached is None or cached[0] != epoch:
            cached = (epoch, randomness.permutation(self._lengths[store], self._seed, "order", store, epoch))
            self._orders[store] = cached
        return int(cached[1][position])
