"""Stages run, are cached, and are done again when what they are made from changed; training resumes bit for bit."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fmct.data.lesion_patches import Item
from fmct.errors import ArtefactError, ConfigError, DataError
from fmct.lesions.candidates import REMOVED, read_candidates
from fmct.lesions.cleanup import CleanupRules
from fmct.lesions.items import without_doubt
from fmct.lesions.pipeline import Pipeline
from fmct.lesions.stages import STAGES, StageFolder
from fmct.lesions.subjects import Subject
from fmct.volume import Volume
from tests.lesions.small_brains import config, phase, pipeline, subjects


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A whole run of every stage, a few updates each."""
    made = pipeline(config(tmp_path_factory.mktemp("lesions") / "run"), subjects())
    for stage in STAGES:
        made.run(stage)
    return made


def test_every_stage_leaves_what_it_says(run: Pipeline) -> None:
    folder = run.folder
    assert all(stage.done for stage in run.stages.values())
    assert len(list((folder / "prepared").glob("*.npz"))) == 3
    for phase_name in ("detector", "teacher", "student"):
        assert (folder / phase_name / "metrics.jsonl").is_file()
    judged = read_candidates(folder / "judged" / "candidates.csv")
    cleaned = read_candidates(folder / "cleaned" / "candidates.csv")
    assert len(judged) == len(cleaned) > 0
    assert all(0 <= c.discriminator_score <= 1 and c.verdict for c in cleaned)
    assert all(bool(c.reason) == (c.verdict == REMOVED) for c in cleaned)
    page = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "Case by case" in page
    results = json.loads((folder / "report" / "results.json").read_text(encoding="utf-8"))
    assert [stage["stage"] for stage in results["stages"]] == ["detection", "discrimination", "clean-up"]


def test_a_stage_that_is_done_is_not_done_again(run: Pipeline) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()}
    pipeline(run.config, run.subjects).run("all")
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()} == before


def test_other_rules_make_the_clean_up_alone_again(run: Pipeline, tmp_path: Path) -> None:
    """Issue: stages run, cache and test alone."""
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    strict = dataclasses.replace(run.config, output=str(folder), clean=CleanupRules(min_voxels=10**6))
    other = pipeline(strict, run.subjects)
    assert [name for name, stage in other.stages.items() if stage.done] == ["prepared", "proposed", "judged"]
    with pytest.raises(ArtefactError, match="stage cleaned was made from other settings"):
        other.run("evaluate")
    other.run("clean")
    verdicts = read_candidates(folder / "cleaned" / "candidates.csv")
    assert all(c.verdict == REMOVED for c in verdicts)
    assert all("min_voxels" in c.reason or "discriminator" in c.reason for c in verdicts)


def test_a_stage_alone_needs_the_one_before(tmp_path: Path) -> None:
    made = pipeline(config(tmp_path / "run"), subjects())
    with pytest.raises(ArtefactError, match="stage prepared has not been run"):
        made.run("propose")
    with pytest.raises(ConfigError, match="stage"):
        made.run("train")


def test_a_phase_resumes_bit_for_bit_with_what_it_mined(run: Pipeline, tmp_path: Path) -> None:
    """The detector, broken off after half its updates, before its mining round: the same weights in the end."""
    whole = run.folder / "detector"
    assert (whole / "mined-1.json").is_file()
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    shutil.rmtree(folder / "proposed")
    last = max((folder / "detector" / "checkpoints").iterdir())
    assert last.name == "step-000004"
    shutil.rmtree(last)
    (folder / "detector" / "mined-1.json").unlink()
    again = pipeline(dataclasses.replace(run.config, output=str(folder)), run.subjects)
    again.run("propose")
    for name in ("metrics.jsonl", "mined-1.json", "checkpoints/step-000004/parameters.safetensors"):
        assert (folder / "detector" / name).read_bytes() == (whole / name).read_bytes(), name


def test_prediction_without_the_run_is_the_runs(run: Pipeline) -> None:
    """LesionDetector.find, which export and predict use, gives the candidates that the stages gave."""
    from fmct.lesions.detector import DetectorRecord, LesionDetector

    detector = LesionDetector(DetectorRecord.of(run.config), run.detector(), run.student())
    tested = run.subjects[-1]
    source = tested.read()
    found = detector.find(source.volume, brain=source.brain, patient=tested.patient, series=tested.series, split="test")
    stored = [c for c in read_candidates(run.folder / "cleaned" / "candidates.csv") if c.series == tested.series]
    assert [dataclasses.astuple(c) for c in found.candidates] == [pytest.approx(dataclasses.astuple(c)) for c in stored]
    np.testing.assert_array_equal(found.labels, run.labels(tested))


def test_doubtful_regions_are_no_negatives_to_learn_from(run: Pipeline, tmp_path: Path) -> None:
    """All of each training brain is doubtful: there is no tissue of which it is known that it holds no lesion."""

    def doubtful(subject: Subject) -> Subject:
        def region() -> Volume:
            image = subject.read().volume
            return dataclasses.replace(image, voxels=np.ones(image.voxels.shape, dtype=np.float32))

        return dataclasses.replace(subject, ignored=region, ignored_key="all")

    folder = tmp_path / "run"
    made = pipeline(dataclasses.replace(run.config, output=str(folder)), [doubtful(s) for s in run.subjects])
    assert made.stages["prepared"].fingerprint == run.stages["prepared"].fingerprint
    assert made.stages["proposed"].fingerprint != run.stages["proposed"].fingerprint
    made.run("normalise")
    with pytest.raises(DataError, match="no negative patch"):
        made.run("propose")


def test_negatives_that_show_a_doubtful_voxel_are_left_out() -> None:
    doubtful = np.zeros((20, 20, 20), dtype=bool)
    doubtful[4:6, 9, 9] = True
    items = [Item("s", centre, positive) for centre in ((9, 9, 9), (10, 9, 9), (5, 9, 9)) for positive in (False, True)]
    kept = without_doubt(items, doubtful, (8, 8, 8))  # a patch of 8 around 9 begins at 5
    assert [(item.centre[0], item.positive) for item in kept] == [(9, True), (10, False), (10, True), (5, True)]
    assert without_doubt(items, None, (8, 8, 8)) == items


def test_a_training_set_of_one_class_is_refused_by_name(tmp_path: Path) -> None:
    """Bad input: zero positives in a fold is an error that names the subjects (B.13, 18)."""
    made = pipeline(config(tmp_path / "run"), subjects(lesions=lambda number: 0))
    made.run("normalise")
    with pytest.raises(DataError, match=r"no positive patch.*s0, s1"):
        made.run("propose")
    assert not (tmp_path / "run" / "detector").exists()


def test_a_missing_sign_or_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dark"):
        pipeline(config(tmp_path / "run", lesion_sign=""), subjects())
    made = pipeline(config(tmp_path / "run", train_split="training"), subjects())
    made.run("normalise")
    with pytest.raises(DataError, match="splits with some: test, train"):
        made.run("propose")


def test_the_teacher_is_not_trained_where_nobody_listens(run: Pipeline, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("teacher", "student", "judged", "report"))
    quiet = dataclasses.replace(
        run.config.discriminate,
        distil=dataclasses.replace(run.config.discriminate.distil, alpha=0.0),
        student_training=phase(1),
    )
    made = pipeline(dataclasses.replace(run.config, output=str(folder), discriminate=quiet), run.subjects)
    made.run("discriminate")
    assert not (folder / "teacher").exists()
    assert (folder / "student" / "checkpoints").is_dir()


def test_a_stage_folder_forgets_what_other_inputs_made(tmp_path: Path) -> None:
    first = StageFolder(tmp_path, "work", {"a": 1})
    (first.begin() / "file").touch()
    first.finish()
    assert first.done
    second = StageFolder(tmp_path, "work", {"a": 2})
    assert not second.done
    assert list(second.begin().glob("file")) == []
    assert not first.done
    assert not StageFolder(tmp_path, "work", {"a": 2}).done  # begun, not finished
