"""Encoders for an experiment, pretrained on the embedded CT without given patients."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fmct.config import build, find_config, import_recipe, read_tree
from fmct.errors import DataError
from fmct.preprocess import Preprocessing
from fmct.publish.export import export, preprocessing_of
from fmct.samples import corpus
from fmct.train.session import Options

RECIPE, CONFIG = "pretrain.dino", "pretrain/demo"
log = logging.getLogger(__name__)


def encoder_without(
    patients: Sequence[str], folder: Path, *, overrides: Sequence[str], fold: int = 0, name: str = ""
) -> Path:
    """Return the encoder folder trained by the demo's recipe on the embedded scans of everyone but `patients`.

    Trained once and kept: FOLDER/NAME, which is fold-N, or all without patients to leave out, where no name is given.
    Whoever has several series is left out with all of them. Raises DataError when a patient is not in the embedded
    corpus.
    """
    name = name or (f"fold-{fold}" if patients else "all")
    target = folder / name
    if target.is_dir():
        return target
    store = folder / "store"
    corpus.make_store(store)
    known = {corpus.KEY.pseudonym("patient", patient): patient for patient in patients}
    absent = [patient for pseudonym, patient in known.items() if pseudonym not in corpus.patients(store)]
    if absent:
        raise DataError(f"the embedded corpus has no patient {absent[0]}: the fold's patients cannot be left out.")
    log.info("pretraining the encoder %s, without %s", name, ", ".join(patients) or "leaving anyone out")
    conditions = ",".join(f"patient!={pseudonym}" for pseudonym in known)
    words = [f"output={folder / 'runs' / name}", f"data.stores=[{{path: {store}, split: '', filter: [{conditions}]}}]"]
    import_recipe(RECIPE).main(_configured(*words, *overrides), Options(), torch.device("cpu"))
    partial = folder / f".{name}.partial"
    export(folder / "runs" / name, partial, overwrite=True)
    partial.rename(target)
    return target


def preprocessing_here(overrides: Sequence[str]) -> Preprocessing:
    """Return the preprocessing that every encoder of `encoder_without` with these overrides has."""
    config = _configured("output=none", *overrides)
    return preprocessing_of(config.views, config.export)


def _configured(*words: str) -> Any:
    return build(import_recipe(RECIPE).Config, read_tree([str(find_config(CONFIG))], words))
