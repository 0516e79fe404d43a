"""NIfTI files: lying headers are refused before allocation, values and modality are decided by what is in them."""

import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from fmct.errors import Refusal
from fmct.io import ReadPolicy, discover, read_candidate, read_volume
from tests.io.phantoms import body

BODY = body()
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def write(path, values=BODY, affine=AFFINE, *, change=None, dtype=None):
    """Write (D, H, W) values as NIfTI (x, y, z), voxel axes L, P, S; `change(header)` lies in the raw header."""
    image = nib.Nifti1Image(np.asarray(values).T, affine, dtype=dtype)
    nib.save(image, path)
    if change is not None:
        opener = gzip.open if str(path).endswith(".gz") else open
        with opener(path, "rb") as file:
            content = bytearray(file.read())
        header = np.frombuffer(content[:348], dtype=nib.nifti1.header_dtype).copy()
        change(header)
        content[:348] = header.tobytes()
        with opener(path, "wb") as file:
            file.write(bytes(content))
    return path


def refused(path, **options) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_volume(path, **options)
    return caught.value


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.hdr"])
def test_values_come_back(tmp_path, name):
    if name == "scan.hdr":
        nib.save(nib.Nifti1Pair(BODY.T, AFFINE), tmp_path / "scan.img")
    else:
        write(tmp_path / name)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, BODY)
    assert (volume.units, volume.voxels.dtype) == ("HU", np.int16)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_huge_dimensions_are_refused_before_allocation(tmp_path, suffix):
    def lie(header):
        header["dim"] = [3, 32767, 32767, 32767, 1, 1, 1, 1]

    path = write(tmp_path / f"scan{suffix}", change=lie)
    tracemalloc.start()
    assert refused(path).code == "too-large"
    assert refused(path, policy=ReadPolicy(max_voxels=10**14)).code == "truncated-pixel-data"
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("dim", [3, -24, 24, 12, 1, 1, 1, 1], "unreadable"),
        ("dim", [9, 24, 24, 12, 1, 1, 1, 1], "unreadable"),
        ("dim", [4, 13, 24, 12, 2, 1, 1, 1], "four-dimensional"),
        ("dim", [3, 26, 24, 40, 1, 1, 1, 1], "truncated-pixel-data"),
        ("vox_offset", 1e9, "unreadable"),
        ("vox_offset", np.nan, "unreadable"),
        ("datatype", 99, "unreadable"),
        ("srow_x", [np.nan, 0, 0, 0], "bad-geometry"),
        ("srow_x", [0, 0, 0, 0], "bad-geometry"),
        ("srow_x", [500, 0, 0, 0], "bad-geometry"),
        ("srow_x", [-1, 0, 0, 1e7], "bad-geometry"),
        ("srow_x", [1, 0, 0, 0], "ambiguous-orientation"),
        ("scl_slope", 1e30, "bad-rescale"),
        ("scl_slope", np.inf, "bad-rescale"),
    ],
)
def test_headers_that_lie(tmp_path, field, value, code):
    def lie(header):
        header["qform_code"] = code == "ambiguous-orientation"
        header[field] = value

    assert refused(write(tmp_path / "scan.nii", change=lie)).code == code


def test_no_orientation_at_all_is_refused(tmp_path):
    def forget(header):
        header["sform_code"] = header["qform_code"] = 0

    assert refused(write(tmp_path / "scan.nii", change=forget)).code == "no-geometry"


def test_disagreeing_affines_can_be_chosen(tmp_path):
    def disagree(header):
        header["qform_code"] = 1
        header["srow_z"] = [0, 0, 2.0, 7.0]

    path = write(tmp_path / "scan.nii", change=disagree)
    assert refused(path).numbers["corner_distance_mm"] == pytest.approx(7.0)
    sform = read_volume(path, policy=ReadPolicy(nifti_affine="sform"))
    qform = read_volume(path, policy=ReadPolicy(nifti_affine="qform"))
    assert sform.affine[2, 3] - qform.affine[2, 3] == pytest.approx(7.0)


def test_metres_become_millimetres(tmp_path):
    affine = AFFINE / 1000
    affine[3, 3] = 1
    image = nib.Nifti1Image(BODY.T, affine)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "scan.nii")
    assert read_volume(tmp_path / "scan.nii").spacing == pytest.approx([2, 1, 1])


def test_a_trailing_axis_of_one_is_three_dimensional(tmp_path):
    nib.save(nib.Nifti1Image(BODY.T[..., None], AFFINE), tmp_path / "scan.nii")
    assert np.array_equal(read_volume(tmp_path / "scan.nii").voxels, BODY)


def test_colour_and_complex_are_refused(tmp_path):
    rgb = np.zeros((26, 24, 12), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, AFFINE), tmp_path / "rgb.nii")
    nib.save(nib.Nifti1Image(BODY.T.astype(np.complex64), AFFINE), tmp_path / "complex.nii")
    assert refused(tmp_path / "rgb.nii").code == "not-scalar"
    assert refused(tmp_path / "complex.nii").code == "not-scalar"


def test_a_short_gzip_stream_is_refused(tmp_path):
    path = write(tmp_path / "scan.nii.gz")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert refused(path).code == "truncated-pixel-data"
    path.write_bytes(content[:12])
    assert refused(path).code == "unreadable"
    path.write_bytes(content[:200] + bytes(40) + content[240:])
    assert refused(path).code in ("truncated-pixel-data", "unreadable")


def test_a_gzip_bomb_is_not_inflated(tmp_path):
    path = write(tmp_path / "scan.nii")
    with gzip.open(tmp_path / "bomb.nii.gz", "wb") as file:
        file.write(path.read_bytes())
        for _ in range(60):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    volume = read_volume(tmp_path / "bomb.nii.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(volume.voxels, BODY)
    assert peak < 20e6


def test_the_suffix_must_tell_the_truth_about_gzip(tmp_path):
    write(tmp_path / "scan.nii").rename(tmp_path / "scan.nii.gz")
    assert refused(tmp_path / "scan.nii.gz").code == "unreadable"


def test_float_values_are_rounded_exactly_or_said_to_be(tmp_path):
    whole = write(tmp_path / "whole.nii", (BODY + np.float32(0.0004)).astype(np.float32))
    volume = read_volume(whole)
    assert np.array_equal(volume.voxels, BODY)
    assert "rounding_error_hu" not in volume.facts
    volume = read_volume(write(tmp_path / "half.nii", (BODY + np.float32(0.25)).astype(np.float32)))
    assert np.array_equal(volume.voxels, BODY)
    assert volume.facts["rounding_error_hu"] == pytest.approx(0.25)


def test_a_scale_in_the_header_is_applied(tmp_path):
    def scale(header):
        header["scl_slope"], header["scl_inter"] = 1.0, -1024.0

    path = write(tmp_path / "scan.nii", (BODY + 1024).astype(np.uint16), change=scale)
    assert np.array_equal(read_volume(path).voxels, BODY)


def test_values_that_are_not_finite_are_refused(tmp_path):
    values = BODY.astype(np.float32)
    values[3, 3, 3] = np.nan
    assert refused(write(tmp_path / "scan.nii", values)).code == "non-finite-values"


@pytest.mark.parametrize(
    "values",
    [
        (BODY > 0).astype(np.uint8),
        np.where(BODY > 0, 1000, -1000).astype(np.int16),
        BODY + 1024,
        np.abs(BODY),
        np.full_like(BODY, -1000),
        np.clip(BODY, -200, 300),
        BODY / 3000.0,
        np.random.default_rng(0).gamma(1.0, 2.0, BODY.shape),
        np.random.default_rng(0).integers(-4096, 4096, BODY.shape).astype(np.int16),
    ],
    ids=["mask", "two levels", "shifted up", "positive", "air", "windowed", "normalised", "pet", "mr phase"],
)
def test_what_is_no_ct_is_refused_by_its_values(tmp_path, values):
    refusal = refused(write(tmp_path / "scan.nii.gz", np.asarray(values)))
    assert refusal.code == "implausible-hu"
    assert {"value_min", "value_max", "air_share", "distinct_values"} <= set(refusal.numbers)


def test_an_intercept_applied_twice_is_seen(tmp_path):
    assert refused(write(tmp_path / "scan.nii", BODY - 1024)).code == "bad-rescale"


def test_patterns_and_tables_name_the_modality(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a_t1.nii.gz", np.abs(BODY))
    write(tmp_path / "data" / "b_ct.nii.gz", np.clip(BODY, -200, 300))
    write(tmp_path / "data" / "mask.nii.gz", (BODY > 0).astype(np.uint8))
    (tmp_path / "table.csv").write_text(
        "﻿file;modality\na_t1.nii.gz;MR\nb_ct.nii.gz;CT\nmask.nii.gz;MR\n", encoding="utf-8"
    )
    patterns = ReadPolicy(modalities=("CT", "MR"), modality_patterns={"*_t1*": "MR", "b_*": "CT", "mask*": "MR"})
    table = ReadPolicy(modalities=("CT", "MR"), modality_table=str(tmp_path / "table.csv"))
    for policy in (patterns, table):
        found = {c.name: c for c in discover([tmp_path / "data"], policy=policy)}
        volume = read_candidate(found["a_t1.nii.gz"], policy)
        assert (volume.modality, volume.voxels.dtype) == ("MR", np.float32)
        assert read_candidate(found["b_ct.nii.gz"], policy).modality == "CT"
        with pytest.raises(Refusal, match="label-map"):
            read_candidate(found["mask.nii.gz"], policy)
    only = ReadPolicy(modality_patterns={"*_t1*": "MR"})
    candidate = next(iter(discover([tmp_path / "data"], policy=only)))
    with pytest.raises(Refusal, match="wrong-modality"):
        read_candidate(candidate, only)


def test_one_other_modality_takes_what_is_no_ct(tmp_path):
    write(tmp_path / "pet.nii", np.random.default_rng(0).gamma(1.0, 2.0, BODY.shape).astype(np.float32))
    volume = read_volume(tmp_path / "pet.nii", modality="PT")
    assert (volume.modality, volume.units) == ("PT", "SUV")
    write(tmp_path / "ct.nii")
    policy = ReadPolicy(modalities=("MR",))
    with pytest.raises(Refusal, match="wrong-modality"):
        read_candidate(next(iter(discover([tmp_path / "ct.nii"], policy=policy))), policy)


def test_too_few_slices(tmp_path):
    assert refused(write(tmp_path / "scan.nii", BODY[:4])).code == "too-few-slices"


def test_a_grid_sheared_within_its_slices_is_refused(tmp_path):
    affine = AFFINE.copy()
    affine[0, 1], affine[1, 2], affine[0, 2] = 0.4, 0.4, 0.5

    def no_qform(header):
        header["qform_code"] = 0

    assert refused(write(tmp_path / "scan.nii", affine=affine, change=no_qform)).code == "bad-geometry"
