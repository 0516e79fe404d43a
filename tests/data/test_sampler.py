from dataclasses import dataclass, field

import numpy as np
import pytest

from fmct.data.sampler import Sampler, StoreConfig, check_modalities, meets, select
from fmct.errors import ConfigError, DataError


@dataclass
class Entry:
    id: str = "a"
    modality: str = "CT"
    shape: tuple = (40, 512, 512)
    spacing_mm: tuple = (3.0, 0.8, 0.8)
    facts: dict = field(default_factory=lambda: {"kvp": 120.0, "kernel": "B30f"})


class FakeStore:
    def __init__(self, entries: list[Entry], splits: dict[str, str]) -> None:
        self.entries, self._splits = entries, splits

    def splits(self) -> dict[str, str]:
        return self._splits


def test_every_epoch_is_another_permutation() -> None:
    sampler = Sampler([17], seed=0)
    epochs = [[sampler(17 * epoch + i) for i in range(17)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == [(0, i) for i in range(17)]
    assert epochs[0] != epochs[1] != epochs[2]
    # Any process may ask for any draw in any order.
    assert [Sampler([17], seed=0)(d) for d in (40, 3, 20)] == [sampler(d) for d in (40, 3, 20)]
    assert [Sampler([17], seed=1)(d) for d in range(17)] != epochs[0]


def test_stores_without_weights_make_one_epoch_together() -> None:
    sampler = Sampler([5, 12, 3], seed=0)
    for epoch in range(3):
        drawn = [sampler(20 * epoch + i) for i in range(20)]
        assert sorted(drawn) == [(s, i) for s, n in enumerate([5, 12, 3]) for i in range(n)]


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, 0.2, 0.1], [3, 1, 1, 5], [0.1, 0.1, 0.1]])
def test_weights_hold_exactly_and_every_store_is_permuted(weights: list[float]) -> None:
    lengths = [7, 30, 11, 4][: len(weights)]
    sampler = Sampler(lengths, weights=weights, seed=0)
    drawn = [sampler(d) for d in range(1000)]
    stores = np.array([s for s, _ in drawn])
    for store, weight in enumerate(weights):
        counts = np.cumsum(stores == store)
        assert np.abs(counts - np.arange(1, 1001) * weight / sum(weights)).max() < len(weights)
        entries = [e for s, e in drawn if s == store]
        length = lengths[store]
        assert sorted(entries[:length]) == list(range(length))
        assert sorted(entries[length : 2 * length]) == list(range(length))


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("modality=CT", True), ("modality!=CT", False), ("spacing_mm.z<=3", True), ("spacing_mm.z<3", False),
        ("shape.z>=41", False), ("facts.kvp=120", True), ("facts.kernel=B30f", True), ("facts.thickness>1", False),
        ("id!=b", True), ("shape.x > 500", True),
    ],
)  # fmt: skip
def test_conditions(condition: str, expected: bool) -> None:
    assert meets(Entry(), [condition]) is expected
    assert meets(Entry(), ["modality=CT", condition]) is expected


@pytest.mark.parametrize("condition", ["modality", "=CT", "colour=red", "shape.q>3", "shape.z>many", "modality<CT"])
def test_conditions_that_cannot_be_are_mistakes(condition: str) -> None:
    with pytest.raises(ConfigError, match="filter"):
        meets(Entry(), [condition])


def test_selection_by_split_and_filter() -> None:
    entries = [Entry(id=str(i), shape=(10 * i, 9, 9)) for i in range(6)]
    split = FakeStore(entries, {str(i): "train" if i < 4 else "test" for i in range(6)})
    whole = FakeStore(entries, {})
    assert [e.id for e in select(split, StoreConfig("p"))] == ["0", "1", "2", "3"]
    assert [e.id for e in select(split, StoreConfig("p", split="test", filter=["shape.z>40"]))] == ["5"]
    assert len(select(split, StoreConfig("p", split=""))) == len(select(whole, StoreConfig("p"))) == 6
    with pytest.raises(DataError, match="no splits"):
        select(whole, StoreConfig("p", split="test"))
    with pytest.raises(DataError, match="no series left"):
        select(whole, StoreConfig("p", filter=["shape.z>1000"]))


def test_modalities_mix_only_when_asked() -> None:
    check_modalities(["CT", "CT"], allow_mixed=False)
    check_modalities(["CT", "MR"], allow_mixed=True)
    with pytest.raises(DataError, match="2 CT, 1 MR"):
        check_modalities(["CT", "MR", "CT"], allow_mixed=False)


def test_weights_have_to_be_positive() -> None:
    with pytest.raises(ConfigError, match="positive"):
        Sampler([3, 4], weights=[1.0, 0.0], seed=0)
