"""B.13, 26 and 27 through `fmct predict`: what a detector of MR does not take fails by itself and says why."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fmct.cli import main
from fmct.errors import ConfigError, DataError
from fmct.io.normalised_nifti import write_normalised
from fmct.lesions.detector import DetectorRecord, check_spacing
from fmct.lesions.model_folder import describe, export_detector, load_detector
from fmct.lesions.pipeline import Pipeline
from fmct.lesions.stages import STAGES
from fmct.normalise import Normalisation, normalise_volume
from fmct.phantoms.brain_mr import BrainPhantom
from tests.lesions.small_brains import brain, config, pipeline, subjects


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of 3.6 mm voxels, two updates a network."""
    root = tmp_path_factory.mktemp("detector")
    made: Pipeline = pipeline(config(root / "run", steps=1), subjects(train=2, test=0))
    for stage in STAGES[:-1]:
        made.run(stage)
    describe(made)
    return export_detector(root / "run", root / "model")


def write(path: Path, values: np.ndarray, like: BrainPhantom, *, scale: float = 1.0) -> None:
    """Write voxels (z, y, x) on a phantom's grid, its voxels `scale` times as large."""
    affine = like.image.affine[:, [2, 1, 0, 3]] @ np.diag([scale, scale, scale, 1])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(values.transpose(2, 1, 0), affine).to_filename(path)


def scans(root: Path) -> dict[str, str]:
    """Write a good scan and the bad ones, a mask of the brain beside each, and return {name: what its row must say}."""
    phantom = brain(40)
    image, inside = phantom.image.voxels, phantom.brain.voxels.astype(np.uint8)
    random = np.random.default_rng(0)
    holes, head = image.copy(), np.where(inside > 0, 40, -1000) + random.integers(-20, 20, image.shape)
    holes[5, 5, 5] = np.nan
    given = {
        "good": image,
        "ct": head.astype(np.int16),
        "phase": random.integers(-2048, 2048, image.shape).astype(np.int16),
        "holes": holes,
        "thin": image[:7],
        "fine": image,
        "empty": image,
        "unmasked": image,
    }
    for name, values in given.items():
        scale = 0.5 if name == "fine" else 1.0
        write(root / "scans" / name / "swi.nii.gz", values, phantom, scale=scale)
        mask = np.zeros_like(inside) if name == "empty" else inside[: len(values)]
        if name != "unmasked":
            write(root / "brains" / name / "swi_brain.nii.gz", mask, phantom, scale=scale)
    echoes = np.stack([image.transpose(2, 1, 0)] * 2, axis=-1)
    (root / "scans" / "echoes").mkdir()
    nib.Nifti1Image(echoes, phantom.image.affine[:, [2, 1, 0, 3]]).to_filename(root / "scans/echoes/swi.nii.gz")
    (root / "scans" / "twice").mkdir()
    write_normalised(root / "scans/twice/swi.nii.gz", normalise_volume(phantom.image, Normalisation("max_invert")))
    write(root / "brains" / "twice" / "swi_brain.nii.gz", inside, phantom)
    return {
        "ct": "wrong-modality",
        "phase": "looks like a CT, a phase image",
        "holes": "non-finite-values",
        "thin": "too-few-slices",
        "fine": "voxels of 1.8 mm along z; this detector was trained on 3.6 to 3.6 mm",
        "empty": "brain mask is empty",
        "unmasked": "it has no brain mask",
        "echoes": "four-dimensional",
        "twice": "was normalised already (max_invert)",
    }


def test_each_bad_scan_fails_by_itself_with_its_reason(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = scans(tmp_path)
    words = ["predict", str(model), str(tmp_path / "scans"), str(tmp_path / "out"), "--device", "cpu"]
    assert main([*words, "--brain-masks", str(tmp_path / "brains"), "--patient-regex", "([a-z]+)/swi"]) == 1
    lines = [json.loads(line) for line in (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()]
    said = {line["patient"]: f"{line['code']}: {line['reason']}" for line in lines}
    assert said.keys() == {"good", *expected}
    assert said["good"] == ": "
    for name, words in expected.items():
        assert words in said[name]
    rows = {line["patient"]: line["rows"][0] for line in lines}
    assert {name for name, row in rows.items() if row["probability"] is not None} == {"good"}
    assert "failed: patient ct" in capsys.readouterr().err


def test_voxels_of_about_the_trained_size_pass(model: Path) -> None:
    """B.13, 26: half as much again is another scanner; twice is another question."""

    trained = load_detector(model, device="cpu").record.spacing_mm
    assert trained == [[3.6] * 3] * 2
    check_spacing((2.5, 3.6, 5.3), trained, "series s")
    check_spacing((0.5, 0.5, 0.5), [], "series s")  # a model that does not say
    for sides, axis in (((3.6, 3.6, 5.6), "x"), ((2.0, 3.6, 3.6), "z")):
        with pytest.raises(DataError, match=rf"series s: voxels of .* mm along {axis}"):
            check_spacing(sides, trained, "series s")


def test_a_detector_without_a_sign_cannot_be_described(tmp_path: Path) -> None:

    with pytest.raises(ConfigError, match="dark"):
        DetectorRecord.of(config(tmp_path, lesion_sign="grey"))
