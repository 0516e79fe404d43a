"""One model folder, or a folder of several (a seed or a finding each): predictions of all for the same scans."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmct.inference.predict import Summary, predict
from fmct.inference.series_source import read_policy
from fmct.publish import layout
from fmct.publish.load_model import load_model
from fmct.store.progress import Reporter, Silent


def predict_with(
    model: str | Path,
    source: str | Path,
    folder: str | Path,
    *,
    revision: str | None = None,
    device: str | None = None,
    read: Sequence[str] = (),
    progress: Callable[[], Reporter] = Silent,
    **settings: Any,
) -> list[Summary]:
    """Predict with a model folder or hub id into `folder`, or with each model of a folder into `folder`/NAME.

    read: key=value of how scans are read (fmct.inference.series_source.read_policy); progress: makes a reporter for
    each model; settings: of fmct.inference.predict.predict. Raises ArtefactError, DataError.
    """
    summaries = []
    for name, path in models_in(model).items():
        loaded = load_model(path, revision=revision, device=device)
        policy = read_policy(loaded.preprocessing.modality, read)
        summaries.append(predict(loaded, source, Path(folder) / name, policy=policy, progress=progress(), **settings))
    return summaries


def models_in(path: str | Path) -> Mapping[str, str | Path]:
    """Return {name: model folder} of a folder of them, in order of name; {"": path} for anything else."""
    folder = Path(path)
    if not folder.is_dir() or (folder / layout.CONFIG).is_file():
        return {"": path}
    inside = {part.name: part for part in sorted(folder.iterdir()) if (part / layout.CONFIG).is_file()}
    return inside or {"": path}
