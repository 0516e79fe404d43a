import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fmct import config as configuration
from fmct.data.pretrain import DataConfig
from fmct.data.sampler import StoreConfig
from fmct.data.view_config import ViewConfig, ViewsConfig
from fmct.errors import ArtefactError, CheckpointError, ConfigError, WeightsError
from fmct.models.encoder import EncoderConfig, build_encoder
from fmct.publish import export as exporting
from fmct.publish.export import ExportConfig, export, preprocessing_of
from fmct.publish.facts import overlap, without_machine
from fmct.publish.load import load_encoder
from fmct.publish.run_facts import write_environment
from fmct.ssl.build import HeadConfig, SelfDistillationConfig, WeightsConfig, build_self_distillation
from fmct.store import Store
from fmct.store.ingest import ingest
from fmct.train import checkpoint
from fmct.train.run import open_run
from fmct.windows import Window
from tests.publish.tiny import CONFIG, body, write_nifti

HEAD = HeadConfig(hidden_dim=32, bottleneck_dim=16, num_prototypes=8)
VIEWS = ViewsConfig(
    global_views=ViewConfig(size=[16, 16, 16], in_plane_mm=[96.0, 384.0], through_plane_mm=[64.0, 256.0]),
    windows=[Window(-160.0, 240.0, "soft tissue"), Window(-1000.0, 1000.0, "wide")],
)


@dataclass(frozen=True)
class RunConfig:
    """The parts of a pretraining configuration that export reads."""

    recipe: str = "pretrain.dino"
    output: str = ""
    store: str = ""
    seed: int = 7
    steps: int = 40
    data: DataConfig = field(default_factory=DataConfig)
    views: ViewsConfig = field(default_factory=lambda: VIEWS)
    encoder: EncoderConfig = field(default_factory=lambda: CONFIG)
    objective: SelfDistillationConfig = field(
        default_factory=lambda: SelfDistillationConfig(
            WeightsConfig(dino=1.0, ibot=0.5), dino_head=HEAD, ibot_head=HEAD
        )
    )
    export: ExportConfig = field(default_factory=ExportConfig)


class Engine:
    """A task as the checkpoint sees it."""

    def __init__(self, task: Any) -> None:
        self.task = task

    def moments(self) -> dict[str, torch.Tensor]:
        return {}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    for number in range(2):
        write_nifti(root / "scans" / f"ZZPHI_CANARY_{number}.nii.gz", body(number))
    with ThreadPoolExecutor(1) as executor:
        summary = ingest([root / "scans"], root / "store", executor=executor)
    assert summary.taken == 2, summary
    return root / "store"


@pytest.fixture
def run(tmp_path: Path, store: Path) -> Path:
    """A run folder with checkpoints of steps 10 and 20, whose teacher and student differ."""
    return make_run(tmp_path / "run", RunConfig(store=str(store), output=str(tmp_path / "run")))


def make_run(folder: Path, config: RunConfig) -> Path:
    from fmct.data.corpus import fingerprints

    folder.mkdir()
    open_run(folder, config, corpus=fingerprints([StoreConfig(path=config.store)]))
    task = build_self_distillation(build_encoder(config.encoder, 2), config.objective)
    for step in (10, 20):
        torch.manual_seed(step)
        for parameter in (*task.parameters(), *task.teacher.parameters()):
            parameter.data = 0.1 * torch.randn_like(parameter)
        state = {"step": step, "draw": 4 * step, "updates": step, "batch_size": 4, "skipped": 0}
        checkpoint.save(folder / "checkpoints", Engine(task), state)
    rows = [{"step": n, "loss": 3.0 - n / 10, "learning_rate": 1e-3, "teacher_entropy": 0.6} for n in range(1, 21)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "timing.jsonl").write_text("".join(json.dumps({"step": n, "seconds": 2.0}) + "\n" for n in range(1, 21)))
    write_environment(folder)
    return folder


def tensors_of(run: Path, step: int, file: str, prefix: str) -> dict[str, torch.Tensor]:
    tensors = load_file(run / "checkpoints" / f"step-{step:06d}" / file)
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def test_the_teacher_of_the_newest_checkpoint_is_exported(run: Path, tmp_path: Path) -> None:
    encoder = load_encoder(export(run, tmp_path / "enc"))
    expected = tensors_of(run, 20, checkpoint.TASK, "teacher/encoder.")
    found = encoder.model.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert encoder.selftest().bit_equal
    assert encoder.config == CONFIG
    assert encoder.preprocessing.windows == tuple(VIEWS.windows)
    assert encoder.preprocessing.input.size_voxels == (16, 16, 16)
    assert encoder.preprocessing.input.spacing_mm == pytest.approx((128 / 16, 192 / 16, 192 / 16))


def test_student_step_and_heads_on_request(run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "enc", student=True, step=10, with_heads=True)
    encoder = load_encoder(folder)
    expected = tensors_of(run, 10, checkpoint.PARAMETERS, "encoder.")
    assert all(torch.equal(encoder.model.state_dict()[name], value) for name, value in expected.items())
    assert (encoder.facts["source"], encoder.facts["step"]) == ("student", 10)
    heads = load_file(folder / "heads.safetensors")
    wanted = tensors_of(run, 10, checkpoint.PARAMETERS, "dino_head.")
    assert all(torch.equal(heads[f"dino_head.{name}"], value) for name, value in wanted.items())
    assert {name.split(".")[0] for name in heads} == {"dino_head", "ibot_head"}


def test_the_card_tells_the_runs_facts_and_nothing_private(run: Path, tmp_path: Path, store: Path) -> None:
    folder = export(run, tmp_path / "enc")
    facts = load_encoder(folder).facts
    assert (facts["step"], facts["steps_planned"], facts["batch_size"], facts["seed"]) == (20, 40, 4, 7)
    assert facts["wall_time_s"] == 40.0
    assert facts["final"]["loss"] == 1.0
    assert facts["processes"] == 1
    assert facts["objective"]["ibot"] == 0.5
    assert facts["corpus"]["series"] == 2
    assert set(facts["versions"]) >= {"fmct", "python", "torch"}
    entries = Store.open(store).entries
    assert overlap(facts, entries) == [entry.id for entry in entries]
    card = (folder / "README.md").read_text()
    for part in ("2 series (2 CT) of 2 patients", "20 of 40", "dino 1, ibot 0.5", "pretrain.dino"):
        assert part in card, part
    for path in folder.iterdir():
        content = path.read_bytes()
        for private in (b"ZZPHI", b"CANARY", str(store).encode(), str(run).encode(), str(tmp_path).encode()):
            assert private not in content, path.name


def test_a_store_that_is_gone_leaves_its_fingerprint(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (run / "config.yaml").read_text()
    recorded = json.loads((run / "corpus.json").read_text())["stores"]
    (run / "config.yaml").write_text(text.replace("/store", "/moved"))
    facts = load_encoder(export(run, tmp_path / "enc")).facts
    assert facts["corpus"] == {"store_fingerprints": sorted(recorded.values())}
    assert "cannot be read" in caplog.text


def test_a_broken_newest_checkpoint_is_passed_over_and_a_named_one_is_an_error(run: Path, tmp_path: Path) -> None:
    path = run / "checkpoints" / "step-000020" / checkpoint.TASK
    path.write_bytes(path.read_bytes()[:-1])
    assert load_encoder(export(run, tmp_path / "enc")).facts["step"] == 10
    with pytest.raises(CheckpointError, match="cut short"):
        export(run, tmp_path / "enc", step=20)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 15. There are: 10, 20"):
        export(run, tmp_path / "enc", step=15)


def test_what_is_no_run_is_explained(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtefactError, match="not a run folder"):
        export(tmp_path / "absent", tmp_path / "enc")
    (run / "checkpoints").rename(run / "elsewhere")
    with pytest.raises(CheckpointError, match="nothing to export"):
        export(run, tmp_path / "enc")
    (run / "elsewhere").rename(run / "checkpoints")
    monkeypatch.setattr(exporting, "read_weights", lambda path: {"linear.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match="exported with --student"):
        export(run, tmp_path / "enc")
    tree = configuration.read_stamped(run / "config.yaml", "fmct-run", "1.0")
    (run / "config.yaml").write_text(
        json.dumps({"format": {"name": "fmct-run", "version": "1.0"}, "seed": tree["seed"]})
    )
    with pytest.raises(ArtefactError, match="not a pretraining run"):
        export(run, tmp_path / "enc")
    assert not (tmp_path / "enc").exists()


def test_input_follows_the_views_unless_told() -> None:
    told = ExportConfig(spacing_mm=[3.0, 2.0, 2.0], size_voxels=[24, 32, 32], overlap=0.5, skip_air=0.2)
    spec = preprocessing_of(VIEWS, told).input
    assert (spec.mode, spec.spacing_mm, spec.size_voxels) == ("tiles", (3.0, 2.0, 2.0), (24, 32, 32))
    assert (spec.overlap, spec.skip_air, spec.foreground_above) == (0.5, 0.2, -500.0)
    shares = ViewsConfig(
        global_views=ViewConfig(size=[32, 32, 32], in_plane_share=[0.3, 1.0], through_plane_share=[0.3, 1.0]),
        percentiles=[0.05, 99.95],
        body_above=None,
    )
    found = preprocessing_of(shares, modality="MR")
    assert (found.input.mode, found.input.spacing_mm, found.input.size_voxels) == ("resize", None, (32, 32, 32))
    assert (found.modality, found.windows, found.percentiles) == ("MR", (), (0.05, 99.95))
    assert found.input.foreground_above is None


def test_an_encoder_is_for_one_modality() -> None:
    corpus = {"modality": {"CT": 3, "PT": 4}}
    with pytest.raises(ConfigError, match="saw CT, PT"):
        exporting._modality(ExportConfig(), corpus)
    assert exporting._modality(ExportConfig(modality="PT"), corpus) == "PT"
    assert exporting._modality(ExportConfig(), {"modality": {"MR": 1}}) == "MR"


def test_configurations_lose_what_names_a_machine() -> None:
    tree = {
        "seed": 1,
        "output": "runs/x",
        "data": {"stores": [{"path": "s"}], "workers": 2},
        "names": ["a", "/home/someone/x", "../y", "~/z", "C:\\data"],
    }
    assert without_machine(tree) == {"seed": 1, "data": {"workers": 2}, "names": ["a", None, None, None, None]}
