"""A tiny store of CT-like phantoms, made through the front door: NIfTI files, then ingest."""

from pathlib import Path

import nibabel
import numpy as np

from fmct.phantoms import body as phantom
from fmct.store.ingest import IngestConfig, ingest


def phantom_store(folder: Path, *, series: int = 3, side: int = 40, first_seed: int = 0) -> Path:
    """Return the path of a store of `series` bodies of `side`³ voxels at 4 mm."""
    scans = folder / "scans"
    scans.mkdir(parents=True)
    for seed in range(first_seed, first_seed + series):
        body = phantom.body(seed, (side, side, side), (4.0, 4.0, 4.0)).oriented("LPS")
        affine = body.affine
        nibabel.Nifti1Image(np.asarray(body.voxels), affine).to_filename(scans / f"body-{seed}.nii.gz")
    store = folder / "store"
    ingest([str(scans)], store, config=IngestConfig(workers=1))
    return store
