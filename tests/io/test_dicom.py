"""DICOM series: what is taken, what is refused with which code and numbers, what is mended."""

import tracemalloc

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from fmct.errors import Refusal
from fmct.io import ReadPolicy, Rejected, discover, read_candidate, read_volume
from tests.io.dicom_writer import (
    AXIAL,
    SAGITTAL,
    faults_allowed,
    save,
    slice_dataset,
    stacked,
    write_enhanced,
    write_series,
)
from tests.io.phantoms import body

BODY = body()


def refused(path, **options) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_volume(path, **options)
    return caught.value


def series_at(folder, heights, **options):
    positions = stacked((0, 0, 0), AXIAL, heights)
    return write_series(folder, body((len(heights), 24, 26)), positions, **options)


def test_a_missing_slice_is_a_gap_with_its_place(tmp_path):
    series_at(tmp_path, [0, 2, 4, 6, 8, 12, 14, 16, 18, 24, 26])
    refusal = refused(tmp_path)
    assert refusal.code == "missing-slices"
    assert refusal.numbers["missing"] == 3
    assert refusal.numbers["gaps_at_mm"] == [8.0, 18.0]
    assert refusal.numbers["steps_mm"] == [2.0, 4.0, 6.0]
    volume = read_volume(tmp_path, policy=ReadPolicy(spacing="resample"))
    assert volume.shape[0] == 14


def test_a_gap_wider_than_the_policy_is_not_filled(tmp_path):
    series_at(tmp_path, [*range(0, 20, 2), *range(40, 60, 2)])
    refusal = refused(tmp_path, policy=ReadPolicy(spacing="resample"))
    assert refusal.code == "missing-slices"
    assert "max_gap_mm=10" in refusal.reason
    assert read_volume(tmp_path, policy=ReadPolicy(spacing="resample", max_gap_mm=30)).shape[0] == 30


def test_uneven_steps_are_listed_with_their_counts(tmp_path):
    series_at(tmp_path, np.cumsum([0, *[4.22] * 5, 1.14, *[7.38] * 5]))
    refusal = refused(tmp_path)
    assert refusal.code == "non-uniform-spacing"
    assert refusal.numbers["steps_mm"] == [1.14, 4.22, 7.38]
    assert refusal.numbers["step_counts"] == [1, 5, 5]


def test_rounded_positions_are_regular_enough(tmp_path):
    series_at(tmp_path, np.round(np.arange(20) * 0.625, 1))
    assert read_volume(tmp_path).spacing[0] == pytest.approx(0.625, rel=0.01)


def test_tilt_and_spacing_are_both_reported(tmp_path):
    heights = np.cumsum([0, *[4.0] * 6, 1.0, *[7.0] * 6])
    positions = stacked((0, 0, 0), AXIAL, heights)
    positions[:, 1] += heights * np.tan(np.radians(18.5))
    write_series(tmp_path, body((14, 24, 26)), positions)
    refusal = refused(tmp_path)
    assert refusal.code == "gantry-tilt"
    assert refusal.numbers["tilt_degrees"] == pytest.approx(18.5, abs=0.01)
    assert refusal.numbers["problems"] == ["gantry-tilt", "non-uniform-spacing"]
    assert refused(tmp_path, policy=ReadPolicy(tilt="resample")).code == "non-uniform-spacing"
    assert refused(tmp_path, policy=ReadPolicy(spacing="resample")).code == "gantry-tilt"
    read_volume(tmp_path, policy=ReadPolicy(tilt="resample", spacing="resample"))


def test_two_slices_at_one_position(tmp_path):
    series_at(tmp_path, [0, 2, 4, 4, 6, 8, 10, 12, 14])
    refusal = refused(tmp_path)
    assert refusal.code == "duplicate-slices"
    assert refusal.numbers["repeated_at_mm"] == [4.0]


def test_copies_of_files_are_dropped_only_when_asked_for(tmp_path):
    paths = write_series(tmp_path / "a", BODY)
    (tmp_path / "copy").write_bytes(paths[3].read_bytes())
    refusal = refused(tmp_path)
    assert refusal.code == "duplicate-slices"
    assert refusal.numbers["copies"] == 1
    volume = read_volume(tmp_path, policy=ReadPolicy(duplicates="drop"))
    assert np.array_equal(volume.voxels, BODY)


def test_time_points_are_a_fourth_dimension(tmp_path):
    uid = generate_uid()
    for phase in range(3):
        write_series(tmp_path / str(phase), BODY, series_uid=uid)
    refusal = refused(tmp_path)
    assert refusal.code == "four-dimensional"
    assert refusal.numbers == {"slices": 36, "positions": 12, "volumes": 3, "problems": ["four-dimensional"]}


def test_all_slices_at_one_position(tmp_path):
    series_at(tmp_path, [5.0] * 12)
    assert refused(tmp_path).code == "duplicate-slices"


def test_two_kernels_under_one_uid_are_refused_or_split_never_merged(tmp_path):
    uid = generate_uid()
    write_series(tmp_path / "a", BODY, series_uid=uid, kernel="SOFT")
    write_series(tmp_path / "b", BODY + 7, series_uid=uid, kernel="BONE")
    refusal = refused(tmp_path)
    assert refusal.code == "mixed-kernels"
    assert refusal.numbers == {"kernels": {"SOFT": 12, "BONE": 12}}
    policy = ReadPolicy(kernels="split")
    soft, bone = discover([tmp_path], policy=policy)
    assert soft.key != bone.key
    assert soft.series == bone.series
    assert np.array_equal(read_candidate(soft, policy).voxels, BODY)
    assert np.array_equal(read_candidate(bone, policy).voxels, BODY + 7)


@pytest.mark.parametrize("marked", [True, False], ids=["by ImageType", "by direction"])
def test_a_scout_under_the_same_uid_is_dropped(tmp_path, marked):
    uid = generate_uid()
    write_series(tmp_path / "a", BODY, series_uid=uid)
    scout = slice_dataset(BODY[0], (0, 0, 0), orientation=AXIAL if marked else SAGITTAL, series_uid=uid)
    if marked:
        scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(scout, tmp_path / "b" / "scout")
    found = list(discover([tmp_path]))
    assert sorted(type(item).__name__ for item in found) == ["Candidate", "Rejected"]
    assert next(item for item in found if isinstance(item, Rejected)).code == "scout"
    assert np.array_equal(read_volume(tmp_path).voxels, BODY)


@pytest.mark.parametrize(
    ("keyword", "value", "code"),
    [
        ("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"], "scout"),
        ("ImageType", ["DERIVED", "SECONDARY", "REFORMATTED"], "derived-image"),
        ("ImageType", ["DERIVED", "PRIMARY", "MIP"], "derived-image"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7", "derived-image"),
        ("BurnedInAnnotation", "YES", "burned-in-annotation"),
        ("Modality", "MR", "wrong-modality"),
        ("Modality", "", "wrong-modality"),
        ("SamplesPerPixel", 3, "not-scalar"),
        ("NumberOfFrames", 4, "multi-frame"),
        ("Rows", None, "not-an-image"),
        ("ImagePositionPatient", None, "no-geometry"),
        ("ImageOrientationPatient", None, "no-geometry"),
        ("PixelSpacing", None, "no-geometry"),
        ("PixelSpacing", ["0", "0"], "bad-geometry"),
        ("PixelSpacing", ["nan", "1"], "bad-geometry"),
        ("ImagePositionPatient", ["1e38", "0", "0"], "bad-geometry"),
        ("ImagePositionPatient", ["nan", "0", "0"], "bad-geometry"),
        ("ImagePositionPatient", ["1", "0"], "bad-geometry"),
        ("ImageOrientationPatient", ["1", "0", "0", "1", "0", "0"], "bad-geometry"),
        ("ImageOrientationPatient", ["inf", "0", "0", "0", "1", "0"], "bad-geometry"),
        ("RescaleSlope", None, "bad-rescale"),
        ("RescaleIntercept", None, "bad-rescale"),
        ("RescaleSlope", "0", "bad-rescale"),
        ("RescaleSlope", "nan", "bad-rescale"),
        ("RescaleSlope", "1e38", "bad-rescale"),
        ("RescaleIntercept", "-1e38", "bad-rescale"),
        ("RescaleIntercept", "0", "bad-rescale"),
        ("RescaleIntercept", "-2048", "bad-rescale"),
        ("RescaleType", "Z_EFF", "bad-rescale"),
    ],
)
def test_headers_that_no_volume_has(tmp_path, keyword, value, code):
    for number, pixels in enumerate(BODY):
        dataset = slice_dataset(pixels, (0, 0, 2.0 * number), series_uid="1.2.3", number=number)
        with faults_allowed():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        if (keyword, value) == ("Modality", ""):
            dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
        save(dataset, tmp_path / f"{number}")
    codes = [item.code if isinstance(item, Rejected) else refused_candidate(item) for item in discover([tmp_path])]
    assert set(codes) == {code}


def refused_candidate(candidate) -> str:
    with pytest.raises(Refusal) as caught:
        read_candidate(candidate)
    return caught.value.code


def test_the_modality_is_known_from_the_object_class_alone(tmp_path):
    write_series(tmp_path, BODY, change=lambda dataset, _: delattr(dataset, "Modality"))
    assert read_volume(tmp_path).modality == "CT"


def test_secondary_images_are_taken_when_the_policy_says_so(tmp_path):
    write_series(tmp_path, BODY, change=lambda d, _: setattr(d, "ImageType", ["DERIVED", "SECONDARY", "REFORMATTED"]))
    assert np.array_equal(read_volume(tmp_path, policy=ReadPolicy(derived="accept")).voxels, BODY)


def test_an_unsigned_overflow_is_no_hu(tmp_path):
    def overflow(dataset, number):
        stored = BODY[number].astype(np.uint16)
        dataset.PixelData = stored.tobytes()
        dataset.RescaleIntercept = "0"

    write_series(tmp_path, BODY, change=overflow)
    refusal = refused(tmp_path)
    assert refusal.code == "bad-rescale"
    assert refusal.numbers["value_max"] > 60000


def test_too_few_slices_and_too_many_voxels(tmp_path):
    write_series(tmp_path, BODY[:5])
    refusal = refused(tmp_path)
    assert refusal.code == "too-few-slices"
    assert refusal.numbers == {"shape": [5, 24, 26], "min_slices": 8}
    assert refused(tmp_path, policy=ReadPolicy(min_slices=2, max_voxels=1000)).code == "too-large"
    assert read_volume(tmp_path, policy=ReadPolicy(min_slices=2)).shape == (5, 24, 26)


def test_padding_becomes_air_and_is_counted(tmp_path):
    padded = body()
    padded[:, :2], padded[:, 2], padded[:, 3], padded[0, 5, :3] = -2000, -3024, -1500, [-1207, -1078, -1499]
    write_series(tmp_path, padded, signed=True, intercept=0.0)
    volume = read_volume(tmp_path)
    assert (volume.voxels[:, :4] == -1000).all()
    assert volume.voxels[0, 5, :3].tolist() == [-1207, -1078, -1499]
    assert volume.facts["padding_voxels"] == 12 * 4 * 26


@pytest.mark.parametrize(
    ("value", "limit", "hu"),
    [(0, None, -1024), (0, 40, -1000), (0xF830, None, -3024)],
    ids=["value", "range", "signed"],
)
def test_the_padding_value_of_the_header_becomes_air(tmp_path, value, limit, hu):
    padded = body()
    padded[:, :3] = hu
    if limit is not None:
        padded[:, 1] = -1024

    def mark(dataset, number):
        dataset.add_new("PixelPaddingValue", "US", value)
        if limit is not None:
            dataset.add_new("PixelPaddingRangeLimit", "US", limit)

    write_series(tmp_path, padded, signed=hu < -1024, change=mark)
    volume = read_volume(tmp_path)
    assert (volume.voxels[:, :3] == -1000).all()


def test_a_padding_value_that_is_tissue_is_not_believed(tmp_path):
    write_series(tmp_path, BODY, change=lambda d, _: d.add_new("PixelPaddingValue", "US", 1024 + 40))
    assert np.array_equal(read_volume(tmp_path).voxels, BODY)


def test_an_orientation_that_differs_by_slice_makes_groups(tmp_path):
    uid = generate_uid()
    write_series(tmp_path / "a", BODY, series_uid=uid)
    write_series(tmp_path / "b", BODY, series_uid=uid, orientation=SAGITTAL)
    write_series(tmp_path / "c", body((12, 30, 30)), series_uid=uid)
    found = list(discover([tmp_path]))
    assert len({item.key for item in found}) == 3
    assert {read_candidate(item).shape for item in found} == {(12, 24, 26), (24, 26, 12), (12, 30, 30)}


def test_enhanced_multi_frame_faults(tmp_path):
    positions = stacked((0, 0, 0), AXIAL, [0, 2, 4, 6, 8, 10, 12, 14, 16, 22, 24, 26])
    assert refused(write_enhanced(tmp_path / "gap", BODY, positions)).code == "missing-slices"
    dataset = pydicom.dcmread(write_enhanced(tmp_path / "lying", BODY, positions))
    dataset.NumberOfFrames = 40
    assert refused(save(dataset, tmp_path / "lying")).code == "unreadable"


def test_pt_and_mr_are_float_and_name_their_units(tmp_path):
    values = np.abs(body()) + 1.0
    write_series(tmp_path / "mr", values, modality="MR", intercept=0.0)
    volume = read_volume(tmp_path / "mr", modality="MR")
    assert (volume.modality, volume.units, volume.voxels.dtype) == ("MR", "arbitrary", np.float32)
    assert np.array_equal(volume.voxels, values)


def pet(dataset, units="BQML", correction="START"):
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.128"
    dataset.Units, dataset.DecayCorrection, dataset.PatientWeight = units, correction, "70"
    dataset.SeriesDate = dataset.AcquisitionDate = "20200101"
    dataset.SeriesTime, dataset.AcquisitionTime = "100000", "100010"
    tracer = Dataset()
    tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = "3.5e8", "6586.2"
    tracer.RadiopharmaceuticalStartTime = "090000.00"
    dataset.RadiopharmaceuticalInformationSequence = Sequence([tracer])


@pytest.mark.parametrize(
    ("units", "correction", "factor", "name"),
    [
        ("BQML", "START", 70e3 / (3.5e8 * 2 ** (-3600 / 6586.2)), "SUV"),
        ("BQML", "ADMIN", 70e3 / 3.5e8, "SUV"),
        ("BQML", "NONE", 1.0, "Bq/ml"),
        ("GML", "START", 1.0, "SUV"),
        ("CNTS", "START", 1.0, "cnts"),
    ],
)
def test_pet_activity_becomes_suv_where_the_header_says_enough(tmp_path, units, correction, factor, name):
    activity = np.abs(body()) * 20.0
    write_series(
        tmp_path, activity, modality="PT", intercept=0.0, slope=0.5, change=lambda d, _: pet(d, units, correction)
    )
    volume = read_volume(tmp_path, modality="PT")
    assert volume.units == name
    assert np.allclose(volume.voxels, activity * factor, rtol=1e-6)
    if name == "SUV" and units == "BQML":
        write_series(tmp_path / "no-weight", activity, modality="PT", intercept=0.0, change=without_weight)
        assert read_volume(tmp_path / "no-weight", modality="PT").units == "Bq/ml"


def without_weight(dataset, number):
    pet(dataset)
    del dataset.PatientWeight


def test_facts_are_technical_and_nothing_else(tmp_path):
    def identify(dataset, number):
        dataset.PatientID, dataset.PatientName = "MRN-CANARY", "ZZPHI^CANARY"
        dataset.StudyDate, dataset.InstitutionName, dataset.AccessionNumber = "19010203", "CANARY HOSPITAL", "CANARY"
        dataset.ContrastBolusAgent, dataset.BodyPartExamined = "CANARY 300 for ZZPHI", "CHEST"
        dataset.SliceThickness, dataset.PatientPosition = "2.5", "HFS"

    write_series(tmp_path / "ZZPHI_CANARY", BODY, change=identify)
    candidate = next(iter(discover([tmp_path])))
    volume = read_candidate(candidate)
    assert candidate.patient == "MRN-CANARY"
    assert volume.facts["kvp"] == 120
    assert volume.facts["kernel"] == "STANDARD"
    assert volume.facts["slice_thickness_mm"] == 2.5
    assert volume.facts["body_part"] == "CHEST"
    assert volume.facts["patient_position"] == "HFS"
    assert volume.facts["contrast_agent"] == "named"
    told = repr(candidate) + repr(dict(volume.facts))
    assert "CANARY" not in told
    assert "19010203" not in told


def test_refusals_and_warnings_quote_no_identity(tmp_path, recwarn, caplog, capfd):
    def identify(dataset, number):
        dataset.PatientID, dataset.PatientName = "CANARY-1", "ZZPHI^CANARY"
        dataset.add_new("SeriesDate", "LO", "CANARY")
        dataset.add_new("RescaleSlope", "LO", "CANARY")

    write_series(tmp_path, BODY, series_uid="1.2.826.777", change=identify)
    refusal = refused(tmp_path)
    assert refusal.code == "bad-rescale"
    captured = capfd.readouterr()
    told = " ".join([str(refusal), repr(refusal.numbers), caplog.text, captured.out, captured.err])
    assert "CANARY" not in told
    assert "1.2.826.777" not in told
    assert str(tmp_path) not in told
    assert len(recwarn) == 0


def test_reading_holds_the_series_once_and_mending_twice(tmp_path):
    values = body((40, 256, 256))
    write_series(tmp_path, values)
    size = values.nbytes
    for policy, bound in ((ReadPolicy(), 1.6), (ReadPolicy(spacing="resample", spacing_tolerance_mm=-1.0), 3.0)):
        read_volume(tmp_path, policy=policy)
        tracemalloc.start()
        volume = read_volume(tmp_path, policy=policy)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert np.array_equal(volume.voxels, values)
        assert peak < bound * size + 2e6  # the value histogram takes 2 MB whatever the size
