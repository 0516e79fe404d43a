"""Series of a store as cases of the dense probe, on the grid and in the orientation that the encoder takes."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fmct import pyramid
from fmct.data.mask_files import mask_on_grid, read_mask
from fmct.data.series import scan_of_entry
from fmct.errors import DataError
from fmct.preprocess import Preprocessing
from fmct.probes.dense import DenseCase
from fmct.resample import sample_box
from fmct.shapes import Triple
from fmct.store.manifest import Entry
from fmct.store.reader import Store
from fmct.tiling import Scan


def dense_cases(
    store: Store, entries: Sequence[Entry], masks: Mapping[str, Path], preprocessing: Preprocessing
) -> Iterator[DenseCase]:
    """Yield the DenseCase of every entry that has a mask ({entry id: file}), in the entries' order.

    Raises DataError for an encoder whose input has no fixed spacing or is not HU, and for a mask that does not lie on
    its scan.
    """
    spacing = preprocessing.input.spacing_mm
    if preprocessing.modality != "CT" or preprocessing.percentiles is not None:
        raise DataError(
            "the dense probe judges soft tissue by HU and needs an encoder of CT with HU windows; this one takes "
            f"{preprocessing.modality}{' scaled by percentiles' if preprocessing.percentiles else ''}."
        )
    if spacing is None:
        raise DataError("the dense probe needs an encoder with a fixed spacing; this one resizes each series.")
    for entry in entries:
        if entry.id not in masks:
            continue
        scan = scan_of_entry(preprocessing, store, entry)
        hu, affine = scan_on_grid(scan, spacing)
        mask = read_mask(masks[entry.id], preprocessing.orientation)
        share = mask_on_grid(mask, hu.shape, affine)
        if mask.voxels.any() and not share.any():
            raise DataError(
                f"{masks[entry.id]}: the mask does not overlap with series {entry.id} in world coordinates. Check that "
                "it belongs to this scan and that its affine is the scan's."
            )
        yield DenseCase(entry.patient, hu, share)


def scan_on_grid(scan: Scan, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return (HU (D, H, W) float32, affine) of a scan at `spacing_mm`: the largest grid inside it, about its centre."""
    native = np.linalg.norm(scan.affine[:3, :3], axis=0)
    wanted = np.asarray(spacing_mm, dtype=np.float64)
    extent = native * np.asarray(scan.shape)
    count = np.maximum(np.floor(extent / wanted + 1e-6), 1).astype(np.int64)
    origin = (np.asarray(scan.shape) - 1) / 2 - (count - 1) / 2 * wanted / native
    affine = np.eye(4)
    affine[:3, :3] = scan.affine[:3, :3] * (wanted / native)
    affine[:3, 3] = scan.affine[:3, :3] @ origin + scan.affine[:3, 3]
    first = pyramid.level_index(origin, scan.factor)
    step = wanted / native / np.asarray(scan.factor)
    z, y, x = (int(n) for n in count)
    size: Triple = (z, y, x)
    values = sample_box(torch.from_numpy(scan.voxels), first.tolist(), step.tolist(), size, air=scan.air / scan.scale)
    return (values * scan.scale).numpy(), affine
