"""Every transfer syntax gives back the values that went in; damaged pixel data is refused."""

import numpy as np
import pydicom
import pytest

from fmct.errors import Refusal
from fmct.io import read_volume
from fmct.io.codestream import codestream_size
from fmct.io.dicom_pixels import PixelFile
from tests.io.dicom_writer import COMPRESSED, NATIVE, write_series
from tests.io.phantoms import body


@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED])
@pytest.mark.parametrize(("signed", "bits", "intercept"), [(False, 12, -1024.0), (False, 16, -1024.0), (True, 16, 0.0)])
def test_lossless_syntaxes_give_back_every_value(tmp_path, syntax, signed, bits, intercept):
    values = body()
    write_series(tmp_path, values, syntax=syntax, signed=signed, bits=bits, intercept=intercept)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, values)
    assert volume.facts["lossy_compression"] is False


def test_bits_beyond_bits_stored_are_not_values(tmp_path):
    def overlay(dataset, number):
        stored = np.frombuffer(dataset.PixelData, dtype=np.uint16) | 0x8000
        dataset.PixelData = stored.tobytes()

    values = body()
    write_series(tmp_path, values, bits=12, change=overlay)
    assert np.array_equal(read_volume(tmp_path).voxels, values)


def test_twelve_signed_bits_are_sign_extended(tmp_path):
    def strip(dataset, number):
        stored = np.frombuffer(dataset.PixelData, dtype=np.uint16) & 0x0FFF
        dataset.PixelData = stored.tobytes()

    values = np.clip(body(), -1024, 2047)
    write_series(tmp_path, values, bits=12, signed=True, intercept=0.0, change=strip)
    assert np.array_equal(read_volume(tmp_path).voxels, values)


def test_a_fractional_slope_is_rounded_and_said(tmp_path):
    values = body()
    write_series(tmp_path, values, slope=0.75, intercept=-1024.0)
    volume = read_volume(tmp_path)
    assert np.abs(volume.voxels - values).max() <= 1
    assert 0 < volume.facts["rounding_error_hu"] <= 0.5


@pytest.mark.parametrize("syntax", ["explicit", "rle", "jpeg-ls", "jpeg-2000", "jpeg-lossless"])
def test_cut_files_are_refused(tmp_path, syntax):
    paths = write_series(tmp_path, body(), syntax=syntax)
    content = paths[5].read_bytes()
    paths[5].write_bytes(content[: len(content) - len(content) // 3])
    with pytest.raises(Refusal) as caught:
        read_volume(tmp_path)
    assert caught.value.code in ("truncated-pixel-data", "unreadable")


def test_native_truncation_is_named_with_its_bytes(tmp_path):
    def cut(dataset, number):
        dataset.PixelData = dataset.PixelData[:100]

    write_series(tmp_path, body(), change=cut)
    with pytest.raises(Refusal, match="truncated-pixel-data") as caught:
        read_volume(tmp_path)
    assert caught.value.numbers == {"promised_bytes": 24 * 26 * 2, "found_bytes": 100}


@pytest.mark.parametrize("syntax", ["jpeg-ls", "jpeg-2000", "jpeg-lossless"])
def test_a_codestream_of_another_size_is_refused_before_decoding(tmp_path, syntax):
    paths = write_series(tmp_path, body(), syntax=syntax)
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.Rows = 12
        dataset.save_as(path)
    with pytest.raises(Refusal, match="header says 12 × 26") as caught:
        read_volume(tmp_path)
    assert caught.value.numbers["compressed_size"] == [24, 26]


def test_an_unknown_and_a_deflated_syntax_are_refused(tmp_path):
    paths = write_series(tmp_path / "htj2k", body(), syntax="jpeg-2000")
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.99"))
    with pytest.raises(Refusal) as caught:
        read_volume(tmp_path / "htj2k")
    assert caught.value.code == "unsupported-compression"
    path = write_series(tmp_path / "deflated", body()[:1])[0]
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"))
    with pytest.raises(Refusal, match="deflated"):
        read_volume(path)


def test_no_file_is_left_behind_and_the_frame_is_read_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    path = write_series(tmp_path / "s", body(), syntax="jpeg-lossless")[0]
    pixels = PixelFile(str(path))
    assert np.array_equal(pixels.frame(0), pixels.frame(0))
    assert list((tmp_path / "t").iterdir()) == []


def test_codestream_sizes_of_foreign_bytes():
    assert codestream_size(b"\x00\x01rle") is None
    assert codestream_size(b"\xff\xd8\xff") == (0, 0)
    assert codestream_size(b"\xff\x4f\xff\x51\x00") == (0, 0)
    assert codestream_size(b"\xff\xd8\xff\xc3\x00\x0b\x10\x02\x00\x01\x00\x01") == (512, 256)
