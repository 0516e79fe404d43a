import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from fmct.errors import ArtefactError, ConfigError, WeightsError
from fmct.preprocess import InputSpec, Preprocessing
from fmct.publish import folder as writer
from fmct.publish import layout
from fmct.publish.folder import write_encoder
from tests.publish.tiny import CONFIG, FACTS, PREPROCESSING, tiny_encoder, tiny_weights


def test_folder_holds_what_the_layout_says_and_nothing_else(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "enc", heads={"dino_head.w": torch.ones(2)})
    assert {path.name for path in folder.iterdir()} == set(layout.ALLOWED) - {layout.BASELINE}
    assert {path.name for path in tmp_path.iterdir()} == {"enc"}
    versions = {"config": ("encoder", "1.0"), "preprocess": ("preprocess", "1.1"), "golden": ("golden", "1.0")}
    for name, (kind, version) in versions.items():
        text = (folder / f"{name}.json").read_text()
        assert next(iter(json.loads(text))) == "format"
        assert json.loads(text)["format"] == {"name": f"fmct-{kind}", "version": version}
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names == set(tiny_weights())


def test_card_has_the_hubs_header_and_the_facts(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "enc", license_id="cc-by-4.0")
    text = (folder / "README.md").read_text()
    header = yaml.safe_load(re.fullmatch(r"---\n(.*?)---\n.*", text, re.DOTALL)[1])
    assert header["license"] == "cc-by-4.0"
    assert header["library_name"] == "fmct"
    assert header["pipeline_tag"] == "image-feature-extraction"
    assert {"ct", "3d", "vit"} <= set(header["tags"])
    for part in (
        "Not a medical device",
        "2 series (2 CT) of 1 patients",
        "cd" * 32,
        "pretrain.dino",
        "30 of 40",
        "dino 1, pixel 0.5",
        "| loss | 3.25 |",
        "| teacher_entropy | 0.5 |",
        "No collapse alarm",
        "| 0 | soft tissue | -160 | 240 | (v +160) / 400 |",
        "Intended use and limits",
    ):
        assert part in text, part
    alarmed = tiny_encoder(tmp_path / "b", facts={**FACTS, "alarms": ["entropy fell"]})
    assert "- entropy fell" in (alarmed / "README.md").read_text()


def test_the_same_run_is_brought_up_to_date_and_others_are_kept(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "enc")
    first = layout.fingerprint(folder)
    assert layout.fingerprint(tiny_encoder(folder, seed=1, facts={**FACTS, "step": 40})) != first
    second = layout.fingerprint(folder)
    for facts in ({**FACTS, "run": "00" * 32}, {**FACTS, "source": "student"}, {}):
        with pytest.raises(ArtefactError, match="--overwrite"):
            tiny_encoder(folder, facts=facts)
    assert layout.fingerprint(folder) == second
    tiny_encoder(folder, facts={}, overwrite=True)
    assert layout.fingerprint(folder) != second
    assert {path.name for path in tmp_path.iterdir()} == {"enc"}


def test_nothing_but_an_encoder_is_ever_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "file"):
        with pytest.raises(ArtefactError, match="not an encoder folder; nothing was written"):
            tiny_encoder(tmp_path / name, overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert (tiny_encoder(tmp_path / "empty") / "SHA256SUMS").is_file()


def test_a_failed_export_leaves_nothing_new_and_the_old_folder_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_encoder(tmp_path / "enc")
    before = layout.fingerprint(folder)

    def full(*arguments: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "write_weights", full)
    with pytest.raises(OSError, match="No space"):
        tiny_encoder(folder, seed=1)
    with pytest.raises(OSError, match="No space"):
        tiny_encoder(tmp_path / "new")
    layout.verify(folder)
    assert layout.fingerprint(folder) == before
    assert {path.name for path in tmp_path.iterdir()} == {"enc"}


def test_a_place_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtefactError, match="cannot be written"):
        tiny_encoder(tmp_path / "file" / "enc")


def test_weights_and_input_have_to_fit(tmp_path: Path) -> None:
    weights = tiny_weights()
    with pytest.raises(WeightsError, match="do not fit"):
        write_encoder(tmp_path / "a", {**weights, "more": torch.zeros(1)}, CONFIG, PREPROCESSING)
    odd = Preprocessing(PREPROCESSING.windows, InputSpec(size_voxels=(18, 16, 16)))
    with pytest.raises(ConfigError, match="size_voxels does not fit the encoder"):
        write_encoder(tmp_path / "a", weights, CONFIG, odd)
    with pytest.raises(WeightsError, match="NaN"):
        write_encoder(tmp_path / "a", {**weights, "norm.bias": torch.full((64,), float("nan"))}, CONFIG, PREPROCESSING)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1]), r"model\.safetensors: the content has SHA-256"),
        ("golden.json", lambda b: b[:-10], r"golden\.json.*altered or cut short"),
        ("SHA256SUMS", lambda b: b"garbage\n", "not a line of `sha256sum`"),
        ("SHA256SUMS", lambda b: b.replace(b"golden.json", b"../x.json"), "not a line of `sha256sum`"),
        ("SHA256SUMS", lambda b: b + b"0" * 64 + b"  run.py\n", r"run\.py, which has no place"),
        ("SHA256SUMS", lambda b: b"".join(b.splitlines(True)[1:]), r"does not name README\.md"),
    ],
)
def test_every_altered_file_is_found(tmp_path: Path, name: str, change: object, message: str) -> None:
    folder = tiny_encoder(tmp_path / "enc")
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ArtefactError, match=message):
        layout.verify(folder)


def test_missing_files_are_named(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "enc")
    (folder / "golden.json").unlink()
    with pytest.raises(ArtefactError, match=r"golden\.json is missing"):
        layout.verify(folder)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ArtefactError, match="holds no SHA256SUMS"):
        layout.verify(folder)
