"""To a model hub, through huggingface_hub: only the files of an encoder folder, as one commit."""

from dataclasses import dataclass
from pathlib import Path

from fmct.errors import ArtefactError
from fmct.publish import layout
from fmct.publish.hub import explained, is_hub_id
from fmct.publish.load import load_encoder


@dataclass(frozen=True)
class Upload:
    """What was, or would be, uploaded: (name, bytes) of each file, and the commit's address (None for a dry run)."""

    files: tuple[tuple[str, int], ...]
    address: str | None
    commit: str | None


def upload(
    folder: Path, repo_id: str, *, private: bool = False, revision: str | None = None, dry_run: bool = False
) -> Upload:
    """Upload an encoder folder as one commit to `repo_id`, which is created when it does not exist.

    The folder's checksums and golden numbers are checked first; a folder that fails is not uploaded.
    revision: a branch, created when it does not exist. Raises ArtefactError.
    """
    if not is_hub_id(repo_id):
        raise ArtefactError(f"{repo_id!r}: not a hub id. Expected owner/name, such as my-lab/ct-vit-small.")
    if not folder.is_dir():
        raise ArtefactError(f"{folder}: no such encoder folder. `fmct export RUN ENCODER` writes one.")
    load_encoder(folder, device="cpu").selftest()
    names = sorted(name for name in layout.ALLOWED if (folder / name).is_file())
    files = tuple((name, (folder / name).stat().st_size) for name in names)
    if dry_run:
        return Upload(files, None, None)
    from huggingface_hub import HfApi

    api = HfApi(library_name="fmct")
    with explained(repo_id, revision):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            allow_patterns=names,
            commit_message=f"Encoder {layout.fingerprint(folder)[:12]}",
        )
    return Upload(files, str(commit.commit_url), commit.oid)
