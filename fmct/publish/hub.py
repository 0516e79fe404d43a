"""From a model hub, through huggingface_hub: only the files of an encoder folder, always at a known commit."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fmct.errors import ArtefactError
from fmct.publish import layout

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def is_hub_id(text: str) -> bool:
    """Return whether `text` has the form owner/name."""
    return _HUB_ID.fullmatch(text) is not None


def download(repo_id: str, *, revision: str | None = None) -> tuple[Path, str]:
    """Return (folder, `repo_id@commit`) of a hub repository's encoder files, from the local cache where it has them.

    Only the names of an encoder folder are fetched. HF_HUB_OFFLINE is honoured: then nothing but the cache is asked.
    Raises ArtefactError.
    """
    from huggingface_hub import snapshot_download

    with explained(repo_id, revision):
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(layout.ALLOWED)))
    if not folder.is_dir():
        raise ArtefactError(
            f"{repo_id}: the repository holds no encoder (no {', '.join(layout.REQUIRED)}). Check the id."
        )
    return folder, f"{repo_id}@{folder.name}"


@contextmanager
def explained(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn the hub client's exceptions into one paragraph that says what to do."""
    from huggingface_hub import constants, errors

    at = f"{repo_id} at {revision}" if revision else repo_id
    try:
        yield
    except errors.GatedRepoError:
        text = f"{at}: access has to be asked for on the hub's page of this model; then log in with `hf auth login`."
    except errors.RepositoryNotFoundError:
        text = (
            f"{at}: the hub at {constants.ENDPOINT} has no such model, or it is private and you are not logged in. "
            "Check the id; for a private one set HF_TOKEN or run `hf auth login`."
        )
    except errors.RevisionNotFoundError:
        text = f"{repo_id}: the hub knows the model but no revision {revision!r}. Name a branch, tag or commit of it."
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE or isinstance(error, errors.OfflineModeIsEnabled):
            text = (
                f"{at}: not whole in the local cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set. "
                "Load it once with a connection, or copy the encoder folder here and pass its path."
            )
        else:
            text = _unreachable(at, error)
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        cause = {401: "not logged in", 403: "no right to do this", 407: "the proxy wants a login"}.get(
            status, "refused"
        )
        text = (
            f"{at}: the hub at {constants.ENDPOINT} answered {status} ({cause}). "
            "Check HF_TOKEN, HTTPS_PROXY and the id, then try again."
        )
    except (errors.HFValidationError, ValueError) as error:
        text = f"{at}: {str(error).splitlines()[0]}"
    except (OSError, RuntimeError) as error:  # the client wraps a broken upload in a RuntimeError
        text = _unreachable(at, error)
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "requests"):
            raise
        text = _unreachable(at, error)
    else:
        return
    raise ArtefactError(text) from None


def _unreachable(at: str, error: Exception) -> str:
    from huggingface_hub import constants

    cause = error.__cause__ or error
    first = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    return (
        f"{at}: the hub at {constants.ENDPOINT} could not be reached or broke off ({type(cause).__name__}: {first}). "
        "Nothing half-loaded is used; run the command again, which goes on where it stopped, or copy the encoder "
        "folder here and pass its path."
    )
