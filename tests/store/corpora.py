"""Small corpora of CT-like files for the store's tests."""

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np

from fmct.store import Store
from fmct.store.ingest import IngestConfig, IngestSummary, ingest

KEY = "5f" * 32


def body(seed: int, shape: tuple[int, int, int] = (20, 40, 36)) -> np.ndarray:
    """Return int16 HU (D, H, W): a noisy ellipsoid of tissue with a bone in it, in air."""
    generator = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    voxels = np.full(shape, -1000.0)
    inside = 0.5 * z**2 + y**2 + x**2 < 0.7
    voxels[inside] = 40
    voxels[(y - 0.3) ** 2 + x**2 < 0.05] = 700
    voxels += generator.normal(0, 15, shape)
    return np.clip(np.rint(voxels), -1024, 3000).astype(np.int16)


def write_nifti(path: Path, voxels: np.ndarray, *, spacing_zyx: tuple[float, float, float] = (3.0, 0.9, 0.8)) -> Path:
    """Write (D, H, W) voxels along Superior, Posterior, Left as NIfTI (x, y, z) with axes L, P, S."""
    path.parent.mkdir(parents=True, exist_ok=True)
    z, y, x = spacing_zyx
    affine = np.diag([-x, -y, z, 1.0])
    affine[:3, 3] = (50.0, 60.0, -70.0)
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def write_corpus(folder: Path, count: int) -> Path:
    """Write `count` bodies, a mask, a file that is no scan, and a copy of the first body."""
    for seed in range(count):
        write_nifti(folder / f"case_{seed // 2:03d}" / f"scan_{seed}.nii.gz", body(seed))
    write_nifti(folder / "case_000" / "mask.nii.gz", (body(0) > 100).astype(np.int16))
    (folder / "notes.txt").write_text("nothing to see")
    write_nifti(folder / "zz_copy.nii.gz", body(0))
    return folder


def write_key(store: Path) -> None:
    """Write the same key for every store, so that stores can be compared."""
    store.with_name(store.name + ".key").write_text(KEY)


def take_in(source: Path, store: Path, **settings: object) -> IngestSummary:
    """Ingest in this process, with the key that every test shares."""
    write_key(store)
    settings = {"workers": 1, "patient_regex": r"case_\d+", **settings}
    return ingest([source], store, config=IngestConfig(**settings))  # type: ignore[arg-type]


def fingerprints(store: Path) -> dict[str, str]:
    """Return {relative path: SHA-256} of every file of a store: equal means identical content."""
    files = sorted(p for p in store.rglob("*") if p.is_file())
    return {str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def opened(store: Path) -> Store:
    """Return the open store."""
    return Store.open(store)
