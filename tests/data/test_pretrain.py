"""The loader, on a real store and with real worker processes."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fmct.data.masking import MaskingConfig
from fmct.data.pretrain import Loader, ViewBatch, build_loader
from fmct.data.sampler import StoreConfig
from fmct.data.view_config import ViewConfig, ViewsConfig
from fmct.data.workers import PIECE
from fmct.errors import ConfigError, DataError
from fmct.phantoms import body as phantom
from fmct.store import Store
from tests.data.scans import make_store

VIEWS = ViewsConfig(
    ViewConfig(2, [24] * 3, [60, 160], [60, 160]), ViewConfig(2, [16] * 3, [30, 60], [30, 60], overlap=1.0)
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bodies = [phantom.body(seed, (30 + seed, 48, 48), (6.0, 7.0, 7.0)) for seed in range(5)]
    return make_store(tmp_path_factory.mktemp("loader"), bodies)


def loader_of(store: Path, **settings: object) -> Loader:
    settings = {"seed": 3, "batch_size": 2, "patch_size": (8, 8, 8), **settings}
    return build_loader([StoreConfig(str(store))], VIEWS, MaskingConfig(), **settings)  # type: ignore[arg-type]


def take(loader: Loader, count: int) -> list[ViewBatch]:
    batches = iter(loader)
    taken = list(itertools.islice(batches, count))
    assert isinstance(batches, Iterator)
    batches.close()  # type: ignore[attr-defined]
    return taken


def samples(batches: list[ViewBatch]) -> dict[int, tuple]:
    """Every sample by its draw, as bytes."""
    found = {}
    for batch in batches:
        assert batch.local_views is not None
        for column, draw in enumerate(batch.draws.tolist()):
            tensors = (batch.global_views, batch.local_views, batch.global_spacing, batch.local_spacing, batch.masks)
            found[draw] = (batch.entries[column], *(t[:, column].contiguous().numpy().tobytes() for t in tensors))
    return found


def test_batches_have_their_shapes_and_order(store: Path) -> None:
    loader = loader_of(store, batch_size=3)
    first, second = take(loader, 2)
    assert first.global_views.shape == (2, 3, 3, 24, 24, 24)
    assert first.local_views is not None
    assert first.local_views.shape == (2, 3, 3, 16, 16, 16)
    assert first.global_spacing.shape == first.local_spacing.shape == (2, 3, 3)
    assert first.masks.shape == (2, 3, 27)
    assert (first.masks.sum(-1) > 0).sum() == 3
    assert first.masks.sum() <= first.most_masked == second.most_masked
    assert first.draws.tolist() == [0, 1, 2]
    assert second.draws.tolist() == [3, 4, 5]
    assert loader.length == 5
    for views in (first.global_views, first.local_views):
        assert views.dtype == torch.float32
        assert 0 <= views.min() < views.max() <= 1
    # A batch stays what it is while later ones are made.
    kept = first.global_views.clone()
    take(loader, 3)
    assert torch.equal(first.global_views, kept)


def test_worker_counts_change_nothing_and_leave_the_global_state_alone(store: Path) -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    # Eight draws of five series: the second epoch is in it.
    runs = [samples(take(loader_of(store, workers=workers), 4)) for workers in (0, 1, 2)]
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0]) == 8
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == str(np.random.get_state())  # noqa: NPY002


def test_a_batch_larger_than_a_piece_is_the_same_draws_joined(store: Path) -> None:
    """A worker reads at most PIECE draws at once, so that its memory does not grow with the batch."""
    whole = samples(take(loader_of(store, batch_size=2), 10))
    for workers in (0, 1):
        (batch,) = take(loader_of(store, batch_size=2 * PIECE + 3, workers=workers), 1)
        assert batch.draws.tolist() == list(range(2 * PIECE + 3))
        assert {d: s for d, s in samples([batch]).items() if d in whole} == {d: whole[d] for d in range(2 * PIECE + 3)}


def test_a_start_in_the_middle_continues_the_same_draws(store: Path) -> None:
    whole = samples(take(loader_of(store), 5))
    assert samples(take(loader_of(store, start_draw=4), 3)) == {d: whole[d] for d in range(4, 10)}


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 2), (4, 1), (1, 4)])
def test_world_sizes_share_out_the_same_draws(store: Path, world_size: int, batch_size: int) -> None:
    whole = samples(take(loader_of(store, batch_size=8), 1))
    split: dict[int, tuple] = {}
    for rank in range(world_size):
        loader = loader_of(store, batch_size=batch_size, rank=rank, world_size=world_size)
        batches = take(loader, 2)
        first = rank * batch_size
        assert batches[0].draws.tolist() == list(range(first, first + batch_size))
        assert batches[1].draws.tolist() == list(range(first + 4, first + 4 + batch_size))
        split |= samples(batches)
    assert split == whole


def test_the_second_epoch_shows_other_crops(store: Path) -> None:
    batches = take(loader_of(store, batch_size=5), 2)
    first, second = (dict(zip(b.entries, b.global_views.unbind(1), strict=True)) for b in batches)
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_a_damaged_entry_is_named_and_never_replaced(store: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(store, broken)
    shard = broken / Store.open(broken).entries[0].shard
    content = bytearray(shard.read_bytes())
    for place in range(len(content) // 4, len(content), 997):
        content[place] ^= 0xFF
    shard.write_bytes(content)
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"draw \d+: entry \w+ in shard .* cannot be read"):
            take(loader_of(broken, workers=workers), 4)


def test_a_killed_worker_is_reported_with_a_hint(store: Path) -> None:
    batches = iter(loader_of(store, workers=1, prefetch=1))
    next(batches)
    for process in worker_processes():
        os.kill(process, signal.SIGKILL)
    with pytest.raises(DataError, match=r"worker died .* shared memory"):
        list(itertools.islice(batches, 20))


def test_a_worker_stays_small(store: Path) -> None:
    """In a process of its own: the tests' fork server holds more than a run's (see tests/forked.py)."""
    code = "import sys, pathlib; from tests.data.test_pretrain import tell_size; tell_size(pathlib.Path(sys.argv[1]))"
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, str(store)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert 20 < float(done.stdout) < 600


def tell_size(store: Path) -> None:
    batches = iter(loader_of(store, workers=1))
    next(batches)
    print(max(resident_mib(process) for process in worker_processes()))
    batches.close()  # type: ignore[attr-defined]


def test_several_stores_are_mixed_by_weight(store: Path) -> None:
    stores = [StoreConfig(str(store), weight=3.0, filter=["shape.z<=31"]), StoreConfig(str(store), 1.0, ["shape.z>31"])]
    loader = build_loader(stores, VIEWS, MaskingConfig(), seed=0, batch_size=8, patch_size=(8, 8, 8))
    shapes = {e.id: e.shape[0] for e in Store.open(store).entries}
    assert sorted(shapes[e] > 31 for e in take(loader, 1)[0].entries) == [False] * 6 + [True] * 2


@pytest.mark.parametrize(
    ("stores", "settings", "text"),
    [
        ([], {}, "no store named"),
        ([StoreConfig("")], {}, "no store named"),
        ([StoreConfig("S"), StoreConfig("S", weight=1.0)], {}, "every store or for none"),
        ([StoreConfig("S")], {"batch_size": 0}, "batch_size"),
        ([StoreConfig("S")], {"patch_size": (7, 8, 8)}, "does not divide"),
    ],
)
def test_mistakes_are_named(store: Path, stores: list[StoreConfig], settings: dict, text: str) -> None:
    chosen = [StoreConfig(str(store) if s.path else "", s.weight, s.filter) for s in stores]
    with pytest.raises(ConfigError, match=text):
        build_loader(
            chosen, VIEWS, MaskingConfig(), **{"seed": 0, "batch_size": 1, "patch_size": (8, 8, 8), **settings}
        )


def worker_processes() -> list[int]:
    """The loader workers of this process: grandchildren, forked from its server."""
    parents = {int(p.name): int((p / "stat").read_text().rsplit(")", 1)[1].split()[1]) for p in processes()}
    servers = [pid for pid, parent in parents.items() if parent == os.getpid()]
    return [pid for pid, parent in parents.items() if parent in servers and b"forkserver" in command(pid)]


def processes() -> list[Path]:
    return [p for p in Path("/proc").iterdir() if p.name.isdigit() and (p / "stat").exists()]


def command(process: int) -> bytes:
    return (Path("/proc") / str(process) / "cmdline").read_bytes()


def resident_mib(process: int) -> float:
    lines = (Path("/proc") / str(process) / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
