import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fmct.errors import ArtefactError, WeightsError
from fmct.models.dual_phase import DualPhase
from fmct.publish import layout
from fmct.publish.decision import Decision
from fmct.publish.load import load_encoder
from fmct.publish.load_model import PublishedModel, load_model
from fmct.publish.model_folder import write_model
from fmct.publish.task_record import TaskRecord
from fmct.publish.weights import read_weights
from tests.publish.tiny import tiny_encoder
from tests.publish.tiny_models import (
    NETWORKS,
    PREPROCESSING,
    SPACING,
    build_encoder,
    drawn,
    loaded,
    network,
    record,
    register,
    tiny_model,
)


@pytest.fixture(autouse=True)
def kind() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        yield


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file and bring SHA256SUMS up to date."""
    content = json.loads(path.read_text())
    for dotted, value in changes.items():
        *where, last = dotted.split("__")
        part = content
        for key in where:
            part = part[key]
        part[last] = value
    path.write_text(json.dumps(content))
    layout.write_sums(path.parent)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folder_gives_back_the_same_network_to_the_bit(tmp_path: Path, name: str) -> None:
    described = record(name, targets=("embolus", "infarct"))
    module = network(described).eval()
    model = loaded(tmp_path / "model", record=described, decision=Decision(thresholds={"embolus": 0.3}))
    x = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        wanted = module(x, spacing=torch.tensor([SPACING] * 2))
    found = model(x)
    wanted = getattr(wanted, "nct", wanted)
    pairs = {
        "segmenter": [(found.segmentation, getattr(wanted, "logits", None))],
        "classifier": [(found.classification, getattr(wanted, "logits", None))],
        "mil": [(found.classification, getattr(wanted, "logits", None))],
        "phase": [
            (found.segmentation, getattr(wanted, "segmentation", None)),
            (found.classification, getattr(wanted, "classification", None)),
        ],
    }[name]
    for got, expected in pairs:
        assert got is not None
        assert torch.equal(got, expected)
    assert model.selftest().bit_equal
    assert model.targets == ("embolus", "infarct")
    assert model.decision is not None
    assert model.decision.thresholds == {"embolus": 0.3}
    assert model.segments == (name in ("segmenter", "phase"))
    assert model.preprocessing == PREPROCESSING
    assert {path.name for path in (tmp_path / "model").iterdir()} == set(layout.REQUIRED)


def test_attention_is_folded_onto_the_tokens_z_slowest(tmp_path: Path) -> None:
    model = loaded(tmp_path / "model", "phase")
    attention = model(torch.randn(1, 1, 8, 12, 16)).attention
    assert attention is not None
    assert attention.shape == (1, 2, 3, 4)
    assert float(attention.sum()) == pytest.approx(1, abs=1e-5)


def test_n2_an_exported_network_has_no_second_phase_and_says_so_when_offered_one(tmp_path: Path) -> None:
    """N2: no CTPA parameter in the artefact; calling it with a CTPA raises a clear TypeError. N1: same numbers."""
    dual = DualPhase(build_encoder(1, SPACING), taps=2, width=8, stem_channels=4, hidden=16, projector_dim=8)
    drawn(dual).eval()
    exported = dual.export_nct()
    slim = {name: value for name, value in exported.state_dict().items() if "projectors" not in name}
    rebuilt = network(record("phase"))
    rebuilt.load_state_dict(slim)
    write_model(tmp_path / "model", rebuilt, record("phase"))
    model = load_model(tmp_path / "model", device="cpu")
    names = list(read_weights(tmp_path / "model" / layout.WEIGHTS))
    assert not [name for name in names if "ctpa" in name]
    x, other = torch.randn(2, 1, 16, 16, 16), torch.randn(2, 1, 16, 16, 16)
    with pytest.raises(TypeError, match="one series alone"):
        model(x, other)
    spacing = torch.tensor([SPACING] * 2)
    with torch.no_grad():
        for offered in (None, other):
            trained = dual(x, offered, spacing=spacing).nct
            found = model(x)
            assert found.segmentation is not None
            assert torch.equal(found.segmentation, trained.segmentation)
            assert found.classification is not None
            assert torch.equal(found.classification, trained.classification)


def test_altered_files_and_foreign_versions_are_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    weights = (folder / layout.WEIGHTS).read_bytes()
    (folder / layout.WEIGHTS).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(ArtefactError, match="altered or cut short"):
        load_model(folder)
    (folder / layout.WEIGHTS).write_bytes(weights)
    edit(folder / layout.CONFIG, format__version="2.0")
    with pytest.raises(ArtefactError, match=r"version 2\.0 was written by another fmct"):
        load_model(folder)
    edit(folder / layout.CONFIG, format__version="1.0", task__kind="os.path")
    with pytest.raises(ArtefactError, match=r"task kind 'os\.path' is none that this fmct knows"):
        load_model(folder)


def test_a_broken_description_is_explained(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    edit(folder / layout.CONFIG, task__architecture={})
    with pytest.raises(ArtefactError, match="describes no network"):
        load_model(folder)
    edit(folder / layout.CONFIG, task__architecture={"network": "classifier", "outputs": 1})
    with pytest.raises(WeightsError, match="do not fit the model"):
        load_model(folder)
    edit(folder / layout.CONFIG, task__targets=["a", "a"])
    with pytest.raises(ArtefactError, match="each once"):
        load_model(folder)
    edit(folder / layout.CONFIG, task={"kind": "tiny"})
    with pytest.raises(ArtefactError, match="not a usable description of a task"):
        load_model(folder)


def test_a_self_test_notices_other_numbers(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    golden = json.loads((folder / layout.GOLDEN).read_text())
    mean = golden["model"]["segmentation_mean"][0]
    edit(folder / layout.GOLDEN, model__segmentation_mean=[mean * 1.001])
    with pytest.raises(ArtefactError, match=r"self-test failed: model\.segmentation_mean"):
        load_model(folder).selftest()


def test_encoder_and_model_folders_are_told_apart(tmp_path: Path) -> None:
    encoder, model = tiny_encoder(tmp_path / "encoder"), tiny_model(tmp_path / "model")
    with pytest.raises(ArtefactError, match=r"holds an encoder .* expected a model folder"):
        load_model(encoder)
    with pytest.raises(ArtefactError, match="expected a file of format 'fmct-encoder', found 'fmct-model'"):
        load_encoder(model)


def test_nothing_is_overwritten_unasked_and_nothing_unsound_is_written(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    with pytest.raises(ArtefactError, match="already holds what another run"):
        tiny_model(folder, seed=1)
    tiny_model(folder, seed=1, overwrite=True)
    with pytest.raises(ArtefactError, match="threshold for stroke, and the model's targets are lesion"):
        tiny_model(tmp_path / "other", decision=Decision(thresholds={"stroke": 0.5}))
    module = network(record("segmenter"))
    next(module.parameters()).data[0] = np.nan
    with pytest.raises(WeightsError, match="NaN or infinite"):
        write_model(tmp_path / "other", module, record("segmenter"))
    with pytest.raises(WeightsError, match="do not fit the model"):
        write_model(tmp_path / "other", network(record("phase")), record("segmenter"))
    assert not (tmp_path / "other").exists()


def test_the_same_run_brings_its_folder_up_to_date(tmp_path: Path) -> None:
    facts = {"run": "ab" * 32, "source": "model", "step": 10}
    folder = tiny_model(tmp_path / "model", facts=facts)
    tiny_model(folder, facts={**facts, "step": 20}, seed=1)
    assert load_model(folder).facts["step"] == 20


def test_the_card_says_what_the_model_decides_and_on_what_that_was_chosen(tmp_path: Path) -> None:
    decision = Decision(thresholds={"embolus": 0.25}, validation={"patients": 40, "positives": 12})
    pretrained = {"fingerprint": "ab12", "overlap": ["2 test series were in pretraining"]}
    described = record("phase", targets=("embolus", "infarct"), pretrained=pretrained)
    folder = tiny_model(tmp_path / "model", record=described, decision=decision, facts={"step": 7, "recipe": "x.y"})
    card = (folder / layout.CARD).read_text()
    for said in (
        "| embolus | 0.25 |",
        "| infarct | none |",
        "patients 40, positives 12",
        "Not a medical device",
        "| fingerprint | ab12 |",
        "| Recipe | x.y |",
        "fmct predict model SCANS OUT",
        "equal to the threshold is positive",
    ):
        assert said in card, said
    plain = (tiny_model(tmp_path / "plain") / layout.CARD).read_text()
    assert "makes no decision" in plain


def test_a_bag_needs_a_head_for_bags_and_gives_its_logits() -> None:
    described = record("mil")
    model = PublishedModel(network(described), described)
    features = torch.randn(5, 64)
    with torch.no_grad():
        wanted, _ = model.module.get_submodule("head")(features, torch.zeros(5, dtype=torch.int64), 1)
    assert torch.equal(model.pooled(torch.zeros(5, 1), features), wanted[0])
    wrong = record("classifier", pool="bag")
    with pytest.raises(ArtefactError, match="no MIL head"):
        PublishedModel(network(wrong), wrong).pooled(torch.zeros(5, 1), features)


def test_max_and_mean_pool_each_target_over_the_windows() -> None:
    logits = torch.tensor([[1.0, -4.0], [3.0, -2.0], [2.0, -3.0]])
    for pool, wanted in (("max", [3.0, -2.0]), ("mean", [2.0, -3.0])):
        described = record("classifier", pool=pool, targets=("a", "b"))
        assert PublishedModel(network(described), described).pooled(logits, None).tolist() == wanted
    with pytest.raises(ArtefactError, match="pool is one of"):
        record("classifier", pool="median")


def test_channels_of_network_and_preprocessing_must_agree() -> None:
    with pytest.raises(ArtefactError, match="takes 2 channels and the preprocessing makes 1"):
        TaskRecord("tiny", ("a",), {}, PREPROCESSING, 2, SPACING)
