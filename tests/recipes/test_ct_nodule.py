"""ct_nodule.yaml from the layout of LUNA16 to its report, in tiny."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import finetune.microbleed as recipe
from fmct.cli import main
from fmct.config import build, read_tree
from fmct.data.cohort import read_cohort
from fmct.lesions.candidates import read_candidates
from fmct.lesions.pipeline import Pipeline
from fmct.lesions.subjects import subjects_of
from fmct.train.session import Options
from tests.datasets.luna_scans import DIAMETER, DOUBTFUL, NODULE, write_lungs, write_scan

SCANS = {"1.1": (0, False, True), "1.2": (1, True, True), "1.3": (1, False, False), "1.4": (9, True, True),
         "1.5": (9, False, False)}  # fmt: skip
TINY = [
    "prepare.spacing_mm=[2.5,1.4,1.4]", "prepare.symmetry_radii_mm=[4.0]", "propose.network.width=8",
    "propose.training.steps=2", "propose.training.batch_size=2", "propose.training.patch=[8,8,8]",
    "propose.threshold=0.002", "propose.mining=0", "discriminate.threshold=0.01", "evaluate.resamples=100",
    *(f"discriminate.{part}.width=8" for part in ("teacher", "student")),
    *(f"discriminate.{part}_training.{key}" for part in ("teacher", "student")
      for key in ("steps=2", "batch_size=2", "patch=[8,8,8]")),
]  # fmt: skip


def write_luna(folder: Path) -> None:
    """Write scans in subsets, the three tables and the lung masks, as the challenge ships them."""
    for seed, (uid, (subset, turned, nodule)) in enumerate(SCANS.items()):
        write_scan(folder / "scans" / f"subset{subset}" / f"{uid}.mhd", seed, turned=turned, nodule=nodule)
        write_lungs(folder / "seg-lungs-LUNA16" / f"{uid}.mhd", turned=turned)
    tables = folder / "CSVFILES"
    tables.mkdir()
    place = "seriesuid,coordX,coordY,coordZ"
    with_nodule = [uid for uid, (_, _, nodule) in SCANS.items() if nodule]
    rows = [",".join(map(str, (uid, *NODULE, DIAMETER))) for uid in with_nodule]
    (tables / "annotations.csv").write_text("\n".join([f"{place},diameter_mm", *rows]) + "\n")
    (tables / "annotations_excluded.csv").write_text(
        f"{place},diameter_mm\n{','.join(map(str, ('1.4', *DOUBTFUL, -1)))}\n"
    )


@pytest.fixture(scope="module")
def luna(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ct_nodule.yaml on five scans, its model, and its predictions of the test split."""
    root = tmp_path_factory.mktemp("nodules")
    write_luna(root)
    assert main(["ingest", str(root / "scans"), str(root / "store"), "workers=1"]) == 0
    curated = ["curate", "luna16", *(str(root / name) for name in ("CSVFILES", "scans", "store", "nodules"))]
    assert main([*curated, "--split", "test=subset9"]) == 0
    config = configured(root)
    assert recipe.main(config, Options(), torch.device("cpu")) == 0
    assert main(["export", str(root / "run"), str(root / "model")]) == 0
    words = [str(root / "model"), str(root / "store"), str(root / "out"), "--brain-masks", str(root / "nodules/lungs")]
    only = ["--only", str(root / "nodules" / "labels.csv"), "--split", "test", "--device", "cpu"]
    assert main(["predict", *words, *only]) == 0
    return root


def configured(root: Path) -> recipe.Config:
    made = root / "nodules"
    words = [
        f"data.store={root / 'store'}", f"data.labels={made / 'labels.csv'}", f"data.masks={made / 'masks'}",
        f"prepare.brain_masks={made / 'lungs'}", f"evaluate.ignore={made / 'ignore'}", f"output={root / 'run'}",
    ]  # fmt: skip
    return build(recipe.Config, read_tree(["configs/finetune/ct_nodule.yaml"], [*words, *TINY]))


def labels_of(luna: Path) -> dict[str, dict[str, str]]:
    with open(luna / "nodules" / "labels.csv", newline="") as file:
        return {row["series"]: row for row in csv.DictReader(file)}


def test_the_run_is_judged_by_luna16s_rule_with_every_scan_counted(luna: Path) -> None:
    results = json.loads((luna / "run" / "report" / "results.json").read_text())
    assert (results["rule"]["hit"], results["lesion_sign"]) == ("radius", "bright")
    assert [(s["subjects"], s["lesions"]) for s in results["stages"]] == [(2, 1)] * 3
    assert "Lung nodules" in (luna / "run" / "report" / "report.html").read_text()


def test_regions_to_ignore_lie_on_the_working_grid(luna: Path) -> None:
    """evaluate.ignore: the excluded finding of the test scan, a ball of 10 mm about its place in the world."""
    config = configured(luna)
    cohort = read_cohort(config.data)
    subjects = subjects_of(cohort, config.prepare.brain_masks, config.evaluate.ignore)
    pipeline = Pipeline(config, subjects, options=Options(), device=torch.device("cpu"))
    held = {s.series: pipeline.case(s, []) for s in subjects}
    cohort.store.close()
    ((series, case),) = [(name, one) for name, one in held.items() if one.ignore is not None]
    assert labels_of(luna)[series]["split"] == "test"
    prepared = pipeline.prepared(next(s for s in subjects if s.series == series))
    assert case.ignore is not None
    world = np.argwhere(case.ignore) @ prepared.affine[:3, :3].T + prepared.affine[:3, 3]
    apart = np.linalg.norm(world - [-DOUBTFUL[0], -DOUBTFUL[1], DOUBTFUL[2]], axis=1)
    assert apart.max() < 5 + np.linalg.norm(prepared.spacing_mm)
    assert case.ignore.sum() * np.prod(prepared.spacing_mm) > 0.8 * np.pi / 6 * 10**3
    assert pipeline.stages["report"].done  # the same configuration: nothing is done again


def test_the_lungs_are_where_nodules_are_looked_for(luna: Path) -> None:
    masks = sorted((luna / "nodules" / "lungs").iterdir())
    assert [path.name for path in masks] == sorted(f"{series}.nii.gz" for series in labels_of(luna))
    for candidate in read_candidates(luna / "out" / "candidates.csv"):
        image = nib.load(luna / "nodules" / "lungs" / f"{candidate.series}.nii.gz")  # type: ignore[attr-defined]
        index = np.linalg.solve(image.affine, [candidate.x_mm, candidate.y_mm, candidate.z_mm, 1])[:3]
        assert (index > -1).all()
        assert (index < image.shape).all()


def test_predictions_are_judged_beside_the_table_and_the_masks(luna: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rule travels with the model; a scan without nodule has no mask, and counts all the same."""
    made, judged = luna / "nodules", luna / "report"
    words = ["evaluate", str(luna / "out"), str(made / "labels.csv"), str(judged), "--masks", str(made / "masks"),
             "--ignore", str(made / "ignore"), "--resamples", "100"]  # fmt: skip
    assert main(words) == 0
    results = json.loads((judged / "results.json").read_text())
    assert results["rule"]["hit"] == "radius"
    assert [(s["subjects"], s["lesions"]) for s in results["stages"]] == [(2, 1)] * 3
    # The same candidates, the same reference: what the run's own report said on its working grid.
    own = json.loads((luna / "run" / "report" / "results.json").read_text())
    assert results["stages"][0]["found"] == own["stages"][0]["found"]
    capsys.readouterr()
    assert main(["evaluate", str(luna / "out"), str(made / "masks"), str(luna / "bare"), "--resamples", "100"]) == 0
    assert "1 predicted series have no reference mask and are not judged" in capsys.readouterr().out
