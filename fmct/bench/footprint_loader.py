"""Memory of a loader's workers: measured in a process of its own (see fmct.bench.fresh)."""

from pathlib import Path
from typing import Any

from fmct.bench.workbench import recipe_config
from fmct.data.pretrain import build_loader
from fmct.data.sampler import StoreConfig
from fmct.residence import peak_resident


def loader_footprint(*, recipe: str, store: str, batch: int, batches: int, workers: int) -> dict[str, Any]:
    """Return the peak resident bytes of each worker of a recipe's loader, and of the process that renders.

    Workers are what the loader's fork server started; they are looked at while they live.
    """
    _, config = recipe_config(recipe, [f"store={store}"])
    loader = build_loader(
        [StoreConfig(path=store)],
        config.views,
        config.masking,
        seed=config.seed,
        batch_size=batch,
        patch_size=config.encoder.patch_size,
        workers=workers,
        prefetch=config.data.prefetch,
        device="cpu",
    )
    drawn = iter(loader)
    for _ in range(batches):
        next(drawn)
    found = {pid: peak_resident(pid) for pid in _grandchildren()}
    shared = {pid: _shared(pid) for pid in found}
    drawn.close()  # type: ignore[attr-defined]
    # The fork server is a child, its workers are grandchildren: the largest of them are the ones that read.
    largest = sorted(found, key=lambda pid: -found[pid])[:workers]
    return {
        "workers": [found[pid] for pid in largest],
        "shared": [shared[pid] for pid in largest],
        "main": peak_resident(),
        "batch": batch,
        "prefetch": config.data.prefetch,
    }


def _grandchildren() -> list[int]:
    """Return the processes that this one's children started; none where there is no /proc."""
    return [grandchild for child in _children("self") for grandchild in _children(child)]


def _children(pid: int | str) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in path.read_text(encoding="utf-8").split()]
        except OSError:
            continue
    return found


def _shared(pid: int) -> int:
    """Return the bytes that a process shares with others: libraries, and batches on their way to the main process."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    keys = ("RssFile:", "RssShmem:")
    return sum(1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith(keys))
