"""A series through a slab network: z order, rows in RAS mm, and attention on the grid that it came from."""

import numpy as np
import pytest
import torch
from torch import nn

from fmct.errors import DataError
from fmct.inference.native_grid import to_scan
from fmct.inference.slab_series import attention_volume, slab_rows, slab_series
from fmct.models.slab_network import SlabOutput
from fmct.phantoms.body import axial_affine
from fmct.preprocess import InputSpec, Preprocessing
from fmct.volume import Volume
from fmct.windows import Window

SPACING = (2.5, 2.0, 2.0)


class Brightest(nn.Module):
    """Says where a slab is brightest, cell by cell: attention is each cell's mean value, the logit the slab's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor, spacing: torch.Tensor | None = None) -> SlabOutput:
        """Return the means of (B, 1, D, H, W)."""
        cells = nn.functional.adaptive_avg_pool3d(x[:, 0] * self.scale, (1, 4, 4))
        return SlabOutput(20 * x.mean((1, 2, 3, 4))[:, None], cells, cells)


def preprocessing() -> Preprocessing:
    spec = InputSpec(mode="slabs", size_voxels=(5, 16, 16), spacing_mm=SPACING, overlap=0.0, skip_air=0.0)
    return Preprocessing((Window(0, 1000),), spec)


def volume(slices: int = 23, side: int = 20) -> Volume:
    """Return air with one bright cell of the slab grid in slab 1: cells of 4 voxels, about the middle."""
    voxels = np.zeros((slices, side, side), dtype=np.int16)
    voxels[4:9, 6:10, 2:6] = 1000  # slabs begin one slice below the series: 25 slices over 23
    return Volume(voxels, axial_affine(voxels.shape, SPACING))


def test_slabs_come_in_z_order_and_rows_say_where_they_lie() -> None:
    prepared = preprocessing()
    slabs = slab_series(Brightest(), prepared, prepared.scan(volume()), device=torch.device("cpu"), precision="fp32")
    assert slabs.logits.shape == (5,)
    assert int(slabs.logits.argmax()) == 1
    rows = list(slab_rows(slabs, "pe"))
    assert [row["slab"] for row in rows] == list(range(5))
    low = [float(str(row["z_low_mm"])) for row in rows]
    assert np.diff(low) == pytest.approx([12.5] * 4)
    bottom = float(axial_affine((23, 20, 20), SPACING)[2, 3]) - 1.25  # the lowest voxel's outer face
    assert low[1] == pytest.approx(bottom + 4 * 2.5)
    assert [row["target"] for row in rows] == ["pe"] * 5
    assert float(str(rows[1]["largest_attention"])) == pytest.approx(1.0)


def test_attention_lies_on_the_voxels_that_it_is_of() -> None:
    """N5's geometry: brought back to the series' grid, the map peaks in the bright cell, weighted by its slab."""
    prepared = preprocessing()
    scan = prepared.scan(volume())
    slabs = slab_series(Brightest(), prepared, scan, device=torch.device("cpu"), precision="fp32")
    seen = attention_volume(slabs)
    assert seen.attention.shape == seen.grid.shape == (23, 20, 20)
    back = to_scan(seen.attention[None], seen.grid, scan.shape)[0]
    assert back.shape == (23, 20, 20)
    z, y, x = np.unravel_index(int(back.argmax()), back.shape)
    assert 4 <= z < 9
    assert 6 <= y < 10
    assert 2 <= x < 6
    probability = float(slabs.logits[1].sigmoid())
    assert float(back.max()) <= probability + 1e-6
    assert float(back[4:9].max()) > 0.8 * probability
    assert not back[:4].any()
    assert not back[:, :2].any()  # in-plane, the centre crop leaves a margin that no slab shows
    assert not back[:, :, 18:].any()


def test_a_series_shorter_than_a_slab_is_refused() -> None:
    prepared = preprocessing()
    with pytest.raises(DataError, match=r"10\.0 mm are shorter than one slab of 12\.5 mm"):
        slab_series(Brightest(), prepared, prepared.scan(volume(slices=4)), device=torch.device("cpu"))
