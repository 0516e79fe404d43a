"""The front door, end to end on a tiny SYNTHETIC cohort: ingest, finetune, export, predict, evaluate."""

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import finetune.microbleed
import finetune.microbleed_phantom
from fmct.cli import main
from fmct.config import build, read_tree
from fmct.errors import ArtefactError, ConfigError
from fmct.lesions.candidates import read_candidates
from fmct.lesions.cleanup import CleanupRules
from fmct.lesions.model_folder import export_detector, load_detector, selftest
from fmct.phantoms.brain_cohort import write_brain_cohort
from fmct.train.session import Options

CONFIGS = Path("configs/finetune")
TINY = [
    "propose.network.width=4",
    "propose.training.steps=2",
    "propose.threshold=0.002",
    "propose.training.batch_size=2",
    "propose.training.patch=[8,8,8]",
    *(f"discriminate.{part}.width=4" for part in ("teacher", "student")),
    *(
        f"discriminate.{part}_training.{key}"
        for part in ("teacher", "student")
        for key in ("steps=2", "batch_size=2", "patch=[8,8,8]")
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of microbleed.yaml, its model, its predictions and their report."""
    root = tmp_path_factory.mktemp("microbleed")
    cohort = write_brain_cohort(root / "c", patients=4, free_share=0.0, test_share=0.25, shape=(26, 32, 26),
                                spacing_mm=(3.6, 3.6, 3.6))  # fmt: skip
    patients = f"patients={cohort.patients}"
    assert main(["ingest", str(cohort.scans), str(root / "store"), "config=store/mr", patients, "workers=1"]) == 0
    words = [f"data.store={root / 'store'}", f"data.masks={cohort.masks}", f"data.splits={cohort.splits}"]
    words += [f"prepare.brain_masks={cohort.brains}", f"output={root / 'run'}", "lesion_sign=dark"]
    tree = read_tree([str(CONFIGS / "microbleed.yaml")], [*words, *TINY, "prepare.symmetry_radii_mm=[3.0]"])
    config = build(finetune.microbleed.Config, tree)
    assert finetune.microbleed.main(config, Options(), torch.device("cpu")) == 0
    assert main(["export", str(root / "run"), str(root / "model")]) == 0
    arguments = ["--brain-masks", str(cohort.brains), "--device", "cpu"]
    assert main(["predict", str(root / "model"), str(cohort.scans), str(root / "out"), *arguments]) == 0
    assert main(["evaluate", str(root / "out"), str(cohort.masks), str(root / "report"), "--resamples", "100"]) == 0
    return root


def test_every_step_leaves_its_files(folder: Path) -> None:
    assert (folder / "run" / "report" / "report.html").is_file()
    assert len(list((folder / "out" / "labels").glob("*.nii.gz"))) == 4
    results = json.loads((folder / "report" / "results.json").read_text(encoding="utf-8"))
    assert results["lesion_sign"] == "dark"
    assert results["stages"][0]["subjects"] == 4
    assert "stage (pooled)" in (folder / "report" / "table.md").read_text(encoding="utf-8")


def test_maps_lie_on_the_scans_own_grid(folder: Path) -> None:
    """B.13, 25, and that the table's voxels are the map's."""
    rows = {
        line["series"]: line for line in map(json.loads, (folder / "out" / "ledger.jsonl").read_text().splitlines())
    }
    found = read_candidates(folder / "out" / "candidates.csv")
    assert found
    for series in rows:
        source = next(
            line.split(",")[2] for line in (folder / "out" / "sources.csv").read_text().splitlines() if series in line
        )
        scan = nib.load(source)  # type: ignore[attr-defined]
        labels = nib.load(folder / "out" / "labels" / f"{series}.nii.gz")  # type: ignore[attr-defined]
        np.testing.assert_allclose(labels.affine, scan.affine, atol=1e-5)
        assert labels.shape == scan.shape
        numbers = np.asarray(labels.dataobj)
        own = [c for c in found if c.series == series]
        assert set(np.unique(numbers).tolist()) - {0} == {c.candidate for c in own}
        for c in own:
            assert np.count_nonzero(numbers == c.candidate) == c.voxels
            place = np.linalg.inv(scan.affine) @ [c.x_mm, c.y_mm, c.z_mm, 1]
            np.testing.assert_allclose(place[:3], np.argwhere(numbers == c.candidate).mean(0), atol=1e-2)


def test_a_model_folder_is_checked(folder: Path, tmp_path: Path) -> None:
    model = load_detector(folder / "model", device="cpu")
    selftest(model, folder / "model")
    with torch.no_grad():
        list(model.student.parameters())[-2].mul_(1.5)
    with pytest.raises(ArtefactError, match="patch logits"):
        selftest(model, folder / "model")
    with pytest.raises(ArtefactError, match="already holds"):
        export_detector(folder / "run", folder / "model")


def test_without_masks_of_the_brain_a_series_fails_by_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", str(folder / "model"), str(folder / "c" / "scans" / "SYN-0000"), str(folder / "bare")]
    assert main([*words, "--device", "cpu"]) == 1
    assert "it has no brain mask" in capsys.readouterr().err
    assert main(["evaluate", str(folder / "out"), str(folder / "c" / "labels.csv"), str(folder / "r2")]) == 2
    assert "folder of reference masks" in capsys.readouterr().err


def test_the_published_preset_goes_the_whole_way(folder: Path) -> None:
    """microbleed_paper.yaml in tiny: bias field, vessels slice by slice, tiles, batch norm, the paper's clean-up."""
    cohort, run = folder / "c", folder / "paper"
    words = [f"data.store={folder / 'store'}", f"data.masks={cohort / 'masks'}", f"data.splits={cohort / 'splits.csv'}"]
    words += [f"prepare.brain_masks={cohort / 'brains'}", f"output={run}", "lesion_sign=dark"]
    small = [*TINY, "prepare.symmetry_radii_mm=[3.6]", "prepare.bias_field.iterations=[5]", "evaluate.resamples=100"]
    config = build(finetune.microbleed.Config, read_tree([str(CONFIGS / "microbleed_paper.yaml")], [*words, *small]))
    assert finetune.microbleed.main(config, Options(), torch.device("cpu")) == 0
    assert main(["export", str(run), str(folder / "paper-model")]) == 0
    arguments = ["--brain-masks", str(cohort / "brains"), "--device", "cpu"]
    out = folder / "paper-out"
    assert main(["predict", str(folder / "paper-model"), str(cohort / "scans"), str(out), *arguments]) == 0
    report = folder / "paper-report"
    assert main(["evaluate", str(out), str(cohort / "masks"), str(report), "--resamples", "100"]) == 0
    rule = json.loads((report / "results.json").read_text(encoding="utf-8"))["rule"]
    assert (rule["one_to_one"], rule["hit"]) == (False, "near")  # the preset's, not the default's
    verdicts = {c.reason.split(":")[0] for c in read_candidates(out / "candidates.csv") if c.reason}
    assert verdicts <= {"discriminator", "min_voxels", "min_depth_voxels", "slice_eccentricity"}


def test_the_sign_is_mandatory_and_masks_too() -> None:
    """Bad input: a config without lesion_sign is an error that names it."""
    with pytest.raises(ConfigError, match="lesion_sign"):
        build(finetune.microbleed.Config, read_tree([str(CONFIGS / "microbleed.yaml")], ["output=x"]))
    tree = read_tree([str(CONFIGS / "microbleed.yaml")], ["output=x", "lesion_sign=dark"])
    with pytest.raises(ConfigError, match=r"data\.masks"):
        finetune.microbleed.main(build(finetune.microbleed.Config, tree), Options(), torch.device("cpu"))


def test_shipped_configs_say_what_they_say() -> None:
    paper = build(
        finetune.microbleed.Config,
        read_tree([str(CONFIGS / "microbleed_paper.yaml")], ["output=x", "lesion_sign=dark"]),
    )
    assert paper.clean == CleanupRules.paper()
    assert (paper.propose.threshold, paper.propose.training.patch, paper.propose.network.width) == (0.2, [48] * 3, 64)
    distil = paper.discriminate.distil
    assert (distil.temperature, distil.alpha, distil.teacher_output) == (4.0, 0.4, "logits")
    assert paper.propose.objective.ce_weighting == "voxel"
    nodule = build(finetune.microbleed.Config, read_tree([str(CONFIGS / "ct_nodule.yaml")], ["output=x"]))
    assert (nodule.prepare.modality, nodule.lesion_sign, nodule.evaluate.hit) == ("CT", "bright", "radius")
    grid = build(
        finetune.microbleed_phantom.Config, read_tree([str(CONFIGS / "microbleed_phantom.yaml")], ["output=x"])
    )
    assert (grid.phantoms.test >= 100, len(grid.seeds) >= 3) == (True, True)
    assert grid.arms["kd_off"].listens is False
    assert dataclasses.asdict(grid.arms["kd_on"])["alpha"] == 0.4
