"""NRRD, MHA and MHD: values come back, faults are refused."""

import numpy as np
import pytest
import SimpleITK as sitk

from fmct.errors import Refusal
from fmct.io import ReadPolicy, Rejected, discover, read_volume
from tests.io.phantoms import body

BODY = body()


def write(path, values=BODY, *, compressed=False, components=False):
    image = sitk.GetImageFromArray(values, isVector=components)
    image.SetSpacing([1.0, 1.0, 2.0, 1.0][: image.GetDimension()])
    sitk.WriteImage(image, str(path), useCompression=compressed)
    return path


def refused(path, **options) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_volume(path, **options)
    return caught.value


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha", "scan.mhd", "scan.nhdr"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64, np.int32])
def test_values_come_back_and_data_files_are_no_scans(tmp_path, name, dtype):
    write(tmp_path / name, BODY.astype(dtype))
    assert [type(item).__name__ for item in discover([tmp_path])] == ["Candidate"]
    assert np.array_equal(read_volume(tmp_path).voxels, BODY)


@pytest.mark.parametrize(
    ("name", "old", "new", "code"),
    [
        ("scan.nrrd", b"sizes: 26 24 12", b"sizes: 26 24 92", "truncated-pixel-data"),
        ("scan.nrrd", b"sizes: 26 24 12", b"sizes: 9999 9999 9999", "too-large"),
        ("scan.nrrd", b"space directions: (1,0,0)", b"space directions: (nan,0,0)", "unreadable"),
        ("scan.nrrd", b"space: left-posterior-superior\n", b"", "no-geometry"),
        ("scan.nrrd", b"encoding: raw", b"encoding: bz2", "unsupported-compression"),
        ("scan.nrrd", b"\n\n", b"\nx", "unreadable"),
        ("scan.mha", b"DimSize = 26 24 12", b"DimSize = 26 24 92", "truncated-pixel-data"),
        ("scan.mha", b"ElementSpacing = 1 1 2", b"Comment = 1", "no-geometry"),
        ("scan.mha", b"ElementSpacing = 1 1 2", b"ElementSpacing = 1 1 900", "bad-geometry"),
        ("scan.mha", b"ElementDataFile = LOCAL", b"ElementDataFile = ../secret.raw", "unsafe-path"),
        ("scan.mha", b"ElementDataFile = LOCAL", b"ElementDataFile = /etc/passwd", "unsafe-path"),
        ("scan.mha", b"ElementDataFile = LOCAL", b"ElementDataFile = LIST", "unsafe-path"),
        ("scan.mha", b"ElementDataFile = LOCAL", b"ElementDataFile = gone.raw", "unreadable"),
        ("scan.mha", b"ElementDataFile = LOCAL", b"Nothing = LOCAL", "unreadable"),
        ("scan.mha", b"BinaryData = True", b"BinaryData = False", "unsupported-compression"),
    ],
)
def test_headers_that_lie(tmp_path, name, old, new, code):
    path = write(tmp_path / name)
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    assert refused(path).code == code


def test_an_nrrd_without_orientation_has_no_geometry(tmp_path):
    header = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 26 24 12\nspacings: 1 1 2\nendian: little\nencoding: raw\n\n"
    (tmp_path / "scan.nrrd").write_bytes(header + BODY.tobytes())
    assert refused(tmp_path / "scan.nrrd").code == "no-geometry"


def test_damaged_compressed_voxels_are_refused(tmp_path):
    for name in ("scan.nrrd", "scan.mha"):
        path = write(tmp_path / name, compressed=True)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
        assert refused(path).code in ("truncated-pixel-data", "unreadable")


def test_vectors_and_time_are_refused(tmp_path):
    write(tmp_path / "vector.mha", np.stack([BODY, BODY], axis=-1), components=True)
    write(tmp_path / "time.nrrd", np.stack([BODY, BODY]))
    assert refused(tmp_path / "vector.mha").code == "not-scalar"
    assert refused(tmp_path / "time.nrrd").code == "four-dimensional"


def test_masks_are_refused_by_value_and_nothing_is_printed(tmp_path, capfd):
    refusal = refused(write(tmp_path / "mask.nrrd", (BODY > 0).astype(np.uint8)))
    assert refusal.code == "implausible-hu"
    assert refusal.numbers["value_max"] == 1
    assert capfd.readouterr() == ("", "")


def test_a_policy_limits_the_size(tmp_path):
    assert refused(write(tmp_path / "scan.mha"), policy=ReadPolicy(max_voxels=100)).code == "too-large"
    assert not any(isinstance(item, Rejected) for item in discover([tmp_path]))
