"""Values as int16, and what is hashed."""

import numpy as np
import pytest

from fmct.errors import Refusal
from fmct.store.fingerprint import PseudonymKey, content_hash, voxel_hash
from fmct.store.take import to_int16
from fmct.volume import Volume

GRID = np.diag([3.0, 1.0, 1.0, 1.0])


def test_hounsfield_units_are_kept_as_they_are():
    voxels = np.random.default_rng(0).integers(-32768, 32767, (3, 4, 5)).astype(np.int16)
    stored, scale, error = to_int16(Volume(voxels, GRID))
    assert stored is voxels
    assert (scale, error) == (1.0, 0.0)


@pytest.mark.parametrize("high", [1e-6, 1.0, 25.4, 4095.0, 1e9])
def test_other_values_are_off_by_what_is_stated_at_most(high):
    values = (np.random.default_rng(0).uniform(-0.1, 1.0, (4, 9, 9)) * high).astype(np.float32)
    stored, scale, error = to_int16(Volume(values, GRID, "PT", "SUV"))
    back = stored.astype(np.float64) * scale
    assert np.abs(back - values).max() == pytest.approx(error, rel=1e-9)
    assert error <= scale * 0.5001
    assert scale == pytest.approx(np.abs(values).max() / 32767, rel=1e-6)


def test_nothing_and_nonsense():
    stored, scale, error = to_int16(Volume(np.zeros((2, 2, 2), np.float32), GRID, "MR", "arbitrary"))
    assert (stored.any(), scale, error) == (False, 1.0, 0.0)
    with pytest.raises(Refusal, match="non-finite"):
        to_int16(Volume(np.full((2, 2, 2), np.nan, np.float32), GRID, "MR", "arbitrary"))


def test_hashes_tell_voxels_shapes_and_grids_apart():
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    assert voxel_hash(voxels) == voxel_hash(voxels.copy(order="F"))
    assert voxel_hash(voxels) != voxel_hash(voxels.reshape(3, 2, 4))
    changed = voxels.copy()
    changed[1, 2, 3] += 1
    assert voxel_hash(changed) != voxel_hash(voxels)
    moved = GRID.copy()
    moved[0, 3] = 0.01
    wobbled = GRID + 1e-7
    assert content_hash("a", GRID) != content_hash("a", moved)
    assert content_hash("a", GRID) == content_hash("a", wobbled)
    assert content_hash("a", GRID) == content_hash("a", GRID * -1 * -1 + -0.0)


def test_pseudonyms_depend_on_the_key_and_the_kind():
    one, two = PseudonymKey(b"1" * 32), PseudonymKey(b"2" * 32)
    assert one.pseudonym("patient", "A") == one.pseudonym("patient", "A")
    assert len({one.pseudonym("patient", "A"), one.pseudonym("series", "A"), two.pseudonym("patient", "A")}) == 3
    assert one.fingerprint != two.fingerprint
