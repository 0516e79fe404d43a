"""What the benches work on: two scans, real or phantoms of the same grid, and a store of them."""

import dataclasses
import gzip
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from fmct import config as configuration
from fmct.errors import DataError, Refusal
from fmct.io import Candidate, discover, read_candidate
from fmct.phantoms import body as phantom
from fmct.shapes import Triple, TripleF
from fmct.store import Store
from fmct.store.ingest import IngestConfig, ingest
from fmct.volume import Volume

PARTS = ("head", "chest")
_WORDS = {"head": ("head", "brain", "skull"), "chest": ("chest", "thorax", "lung")}


@dataclass(frozen=True)
class Sizes:
    """How much is measured. grid, spacing: of the phantoms, (z, y, x); the rest says its own name."""

    grids: dict[str, tuple[Triple, TripleF]]
    view_draws: int
    store_samples: int
    store_recipe: str
    step_recipes: tuple[str, ...]
    step_memory_recipe: str
    step_batch: int
    step_rounds: int
    step_overrides: tuple[str, ...]
    products: tuple[int, ...]
    ingest_repeats: int
    series_slices: int
    loader_batch: int
    loader_batches: int
    starts: int
    lesion_side: int
    lesion_repeats: int

    @property
    def comparable(self) -> bool:
        """Whether targets may be held against figures whose size is that of the grids, models and series here."""
        return not self.step_overrides


FULL = Sizes(
    grids={"head": ((90, 512, 512), (3.0, 1.0, 1.0)), "chest": ((92, 512, 512), (3.0, 0.78, 0.78))},
    view_draws=60,
    store_samples=100,
    store_recipe="pretrain/vit_base",
    step_recipes=("pretrain/vit_small", "pretrain/vit_base"),
    step_memory_recipe="pretrain/vit_base",
    step_batch=8,
    step_rounds=4,
    step_overrides=(),
    products=(1024, 2048, 4096),
    ingest_repeats=3,
    series_slices=600,
    loader_batch=64,
    loader_batches=4,
    starts=7,
    lesion_side=256,
    lesion_repeats=3,
)
QUICK = dataclasses.replace(
    FULL,
    grids={"head": ((90, 192, 192), (3.0, 2.6, 2.6)), "chest": ((48, 128, 128), (3.0, 1.5, 1.5))},
    view_draws=6,
    store_samples=12,
    step_recipes=("pretrain/vit_small",),
    step_memory_recipe="pretrain/vit_small",
    step_batch=2,
    step_rounds=1,
    step_overrides=(
        "encoder.size=tiny",
        "encoder.depth=2",
        "views.local_views.count=2",
        "objective.dino_head={hidden_dim: 256, bottleneck_dim: 64, num_prototypes: 1024}",
        "objective.ibot_head={hidden_dim: 256, bottleneck_dim: 64, num_prototypes: 1024}",
        "engine.kind=torch",
    ),
    products=(256, 512),
    ingest_repeats=1,
    series_slices=24,
    loader_batch=2,
    loader_batches=3,
    starts=3,
    lesion_side=64,
    lesion_repeats=1,
)
GPU_RECIPES = ("pretrain/vit_small", "pretrain/vit_base", "pretrain/vit_large", "pretrain/fmhct_vit_base")
GPU_PRODUCTS = (2048, 4096, 8192)


@dataclass
class Workbench:
    """Scans, files and the store of one `fmct bench`, made when first asked for. say: prints progress.

    data: a scan, or a folder whose file names say head and chest; empty for phantoms. cache: of what two benches need.
    """

    folder: Path
    sizes: Sizes
    data: str = ""
    threads: int = 1
    say: Callable[[str], None] = print
    cache: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def candidates(self) -> dict[str, Candidate]:
        """The scans of `data` by part: the first readable one whose name says so, else the first of all, else none."""
        if not self.data:
            return {}
        found = [item for item in discover([self.data]) if isinstance(item, Candidate)]
        chosen = {part: next(_readable(_naming(found, _WORDS[part])), None) for part in PARTS}
        missing = [part for part, candidate in chosen.items() if candidate is None]
        first = next(_readable(found), None) if missing else None
        if missing and first is None:
            raise DataError(f"--data {self.data}: expected a CT scan or a folder that holds one, found none to read.")
        return {part: candidate or first for part, candidate in chosen.items() if candidate or first}  # type: ignore[misc]

    def volume(self, part: str) -> Volume:
        """Return the `head` or `chest`."""
        if part not in self.cache:
            shape, spacing = self.sizes.grids[part]
            self.say(f"reading the {part}" if self.data else f"drawing a phantom on the grid of a {part}, {shape}")
            self.cache[part] = (
                read_candidate(self.candidates[part]) if self.data else phantom.body(PARTS.index(part), shape, spacing)
            )
        return self.cache[part]

    def describe(self, part: str) -> str:
        """Return what the part is: real or phantom, with its grid."""
        volume = self.volume(part)
        kind = "real" if self.data else "phantom"
        spacing = " × ".join(f"{s:.2f}" for s in volume.spacing)
        return f"{kind}, {' × '.join(map(str, volume.shape))} voxels of {spacing} mm (z, y, x)"

    @cached_property
    def store_path(self) -> Path:
        """A store that holds the head, then the chest, at least as one series each."""
        path = self.folder / "store"
        for part in PARTS:
            file = self.folder / f"{part}.nii"
            write_nifti(file, self.volume(part))
            summary = ingest([file], path, config=IngestConfig(workers=1))
            if summary.refused and not summary.refused.keys() <= {"duplicate-content"}:
                raise DataError(f"--data: the {part} is not taken into a store ({', '.join(summary.refused)}).")
        return path

    def store(self) -> Store:
        """Return the store, opened anew."""
        return Store.open(self.store_path)

    def entry_of(self, store: Store, part: str) -> Any:
        """Return the store's entry of a part (the only one, where one scan stands for both)."""
        return store.entries[min(PARTS.index(part), len(store.entries) - 1)]


def recipe_config(name: str, overrides: Sequence[str] = ()) -> tuple[Any, Any]:
    """Return (recipe module, its configuration) of a shipped or own configuration file, as `fmct pretrain` reads it."""
    tree = configuration.read_tree([name], ["output=unused", *overrides])
    recipe = configuration.import_recipe(str(tree.setdefault("recipe", "pretrain.dino")))
    return recipe, configuration.build(recipe.Config, tree)


def write_nifti(path: Path, volume: Volume) -> None:
    """Write a volume as int16 NIfTI; a name in .gz is compressed lightly, as fast as gzip goes."""
    affine = np.eye(4)
    affine[:3, :3] = volume.affine[:3, 2::-1]
    affine[:3, 3] = volume.affine[:3, 3]
    image = nibabel.Nifti1Image(volume.voxels.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    if path.suffix != ".gz":
        image.to_filename(path)
        return
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(image.to_bytes())


def _naming(candidates: Sequence[Candidate], words: Sequence[str]) -> list[Candidate]:
    return [c for c in candidates if any(word in c.name.lower() for word in words)]


def _readable(candidates: Sequence[Candidate]) -> Iterator[Candidate]:
    for candidate in candidates:
        try:
            read_candidate(candidate)
        except Refusal:
            continue
        yield candidate
