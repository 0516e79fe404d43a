import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

import fmct
from fmct.errors import ArtefactError
from fmct.publish import layout
from fmct.publish.hub import is_hub_id
from fmct.publish.upload import upload
from tests.publish.hub_server import Hub, running_hub
from tests.publish.tiny import body, tiny_encoder

REPO = "my-lab/ct-vit-tiny"
# The hub's own client passes bytes to its HTTP library in a way that the library has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub talks to instead of the real one, with a cache and a token of its own."""
    with running_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_loopback")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


def test_an_encoder_goes_up_and_comes_down_the_same(hub: Hub, tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "enc")
    (folder / "notes.txt").write_text("not for publication")
    done = upload(folder, REPO, private=True)
    assert hub.repos[REPO]["private"]
    files = hub.repos[REPO]["commits"][done.commit]
    assert set(files) == set(layout.REQUIRED)
    assert all(files[name] == (folder / name).read_bytes() for name in files)
    assert dict(done.files) == {name: len(content) for name, content in files.items()}
    encoder = fmct.load_encoder(REPO)
    assert encoder.origin == f"{REPO}@{done.commit}"
    assert encoder.selftest().bit_equal
    np.testing.assert_array_equal(encoder.embed(body()), fmct.load_encoder(folder).embed(body()))


def test_a_moved_branch_is_followed_and_a_commit_stays(hub: Hub, tmp_path: Path) -> None:
    first = upload(tiny_encoder(tmp_path / "a"), REPO)
    second = upload(tiny_encoder(tmp_path / "b", seed=1), REPO)
    assert first.commit != second.commit
    assert fmct.load_encoder(REPO).origin.endswith(str(second.commit))
    pinned = fmct.load_encoder(REPO, revision=first.commit)
    assert pinned.origin.endswith(str(first.commit))
    np.testing.assert_array_equal(pinned.embed(body()), fmct.load_encoder(tmp_path / "a").embed(body()))
    upload(tmp_path / "a", REPO, revision="v1")
    assert set(hub.repos[REPO]["branches"]) == {"main", "v1"}
    assert fmct.load_encoder(REPO, revision="v1").facts["step"] == 30


def test_only_the_files_of_an_encoder_are_fetched(hub: Hub, tmp_path: Path) -> None:
    upload(tiny_encoder(tmp_path / "enc"), REPO)
    hub.commit(
        REPO, "main", {"modeling.py": b"raise SystemExit", "pytorch_model.bin": b"\x80pickle", "x/y.json": b"{}"}
    )
    encoder = fmct.load_encoder(REPO)
    assert encoder.folder is not None
    assert {path.name for path in encoder.folder.iterdir()} == set(layout.REQUIRED)
    assert not [line for line in hub.requests if "modeling.py" in line or ".bin" in line]


def test_dry_run_checks_lists_and_sends_nothing(hub: Hub, tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "enc")
    done = upload(folder, REPO, dry_run=True)
    assert done.commit is None
    assert {name for name, _ in done.files} == set(layout.REQUIRED)
    assert hub.requests == []


def test_a_folder_that_fails_its_selftest_is_not_uploaded(hub: Hub, tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "enc")
    text = (folder / "golden.json").read_text()
    (folder / "golden.json").write_text(text.replace('"tiles": ', '"tiles": 1'))
    with pytest.raises(ArtefactError, match="altered or cut short"):
        upload(folder, REPO)
    layout.write_sums(folder)
    with pytest.raises(ArtefactError, match="self-test failed"):
        upload(folder, REPO)
    assert hub.requests == []


def test_what_does_not_exist_is_said(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="has no such model, or it is private"):
        fmct.load_encoder("nobody/nothing")
    upload(tiny_encoder(tmp_path / "enc"), REPO)
    with pytest.raises(ArtefactError, match="no revision 'v9'"):
        fmct.load_encoder(REPO, revision="v9")
    hub.create("my-lab/empty")
    with pytest.raises(ArtefactError, match="holds no encoder"):
        fmct.load_encoder("my-lab/empty")
    for wrong in ("no-owner", "a/b/c", "spaces in/it"):
        assert not is_hub_id(wrong)
        with pytest.raises(ArtefactError, match="not a hub id"):
            upload(tmp_path / "enc", wrong)
    with pytest.raises(ArtefactError, match="no such encoder folder"):
        upload(tmp_path / "absent", REPO)


@pytest.mark.parametrize(("status", "message"), [(403, "no right to do this"), (407, "the proxy wants a login")])
def test_refusals_of_the_hub_are_explained(hub: Hub, tmp_path: Path, status: int, message: str) -> None:
    hub.create(REPO)
    hub.faults["/commit/"] = status
    with pytest.raises(ArtefactError, match=message):
        upload(tiny_encoder(tmp_path / "enc"), REPO)


def test_a_broken_off_upload_is_explained_and_commits_nothing(hub: Hub, tmp_path: Path) -> None:
    hub.create(REPO)
    before = hub.resolve(REPO, "main")
    hub.faults["/large/"] = 400
    with pytest.raises(ArtefactError, match="could not be reached or broke off"):
        upload(tiny_encoder(tmp_path / "enc"), REPO)
    assert hub.resolve(REPO, "main") == before


def test_offline_takes_the_cache_or_says_so(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(tiny_encoder(tmp_path / "enc"), REPO)
    fmct.load_encoder(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert fmct.load_encoder(REPO).selftest().bit_equal
    with pytest.raises(ArtefactError, match="HF_HUB_OFFLINE is set"):
        fmct.load_encoder("my-lab/never-loaded")
    assert hub.requests == []


def test_a_hub_that_is_gone_leaves_the_cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(tiny_encoder(tmp_path / "enc"), REPO)
    fmct.load_encoder(REPO)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert fmct.load_encoder(REPO).facts["step"] == 30
    with pytest.raises(ArtefactError, match="could not be reached"):
        fmct.load_encoder("my-lab/never-loaded")


def test_a_broken_off_download_is_not_used_and_goes_on_later(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    upload(tiny_encoder(tmp_path / "enc"), REPO)
    hub.faults["model.safetensors"] = "cut"
    with pytest.raises(ArtefactError, match="could not be reached or broke off"):
        fmct.load_encoder(REPO)
    snapshots = tmp_path / "cache" / "models--my-lab--ct-vit-tiny" / "snapshots"
    assert not list(snapshots.glob("*/model.safetensors"))
    hub.faults.clear()
    assert fmct.load_encoder(REPO).selftest().bit_equal


def test_wrong_bytes_from_the_hub_are_found(hub: Hub, tmp_path: Path) -> None:
    done = upload(tiny_encoder(tmp_path / "enc"), REPO)
    files = hub.repos[REPO]["commits"][done.commit]
    files["model.safetensors"] = files["model.safetensors"][:-4] + bytes(4)
    with pytest.raises(ArtefactError, match=r"model\.safetensors.*altered or cut short. Delete .*my-lab--ct-vit-tiny"):
        fmct.load_encoder(REPO)


def test_the_command_line_publishes_through_the_environment(hub: Hub, tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "enc")
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [
        sys.executable,
        "-c",
        "import sys; from fmct.cli import main; sys.exit(main())",
        "publish",
        str(folder),
        REPO,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    commit = hub.resolve(REPO, "main")
    assert f'revision="{commit}"' in done.stdout
    assert set(hub.repos[REPO]["commits"][commit]) == set(layout.REQUIRED)
