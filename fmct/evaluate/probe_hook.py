"""The dense probe while a run trains: one line in RUN/probe.jsonl each time, nothing of the run's state touched."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fmct import distributed
from fmct.evaluate.cohort import Fold
from fmct.evaluate.masks import match_masks
from fmct.evaluate.probe_dense import (
    DenseTokens,
    draw_tokens,
    encode_tokens,
    hu_statistics,
    score_features,
)
from fmct.evaluate.probe_dense_cases import dense_cases
from fmct.models.encoder import VisionTransformer
from fmct.preprocess import Preprocessing, Window
from fmct.shapes import TripleF
from fmct.store.reader import Store
from fmct.train.log import truncate_after

PROBE_LOG = "probe.jsonl"


@dataclass
class DenseHook:
    """Called as `evaluate(step)` by `fit`; rank 0 probes, the others go on to the next collective and wait there.

    encoder: the network as it trains (the teacher). fold: who fits the probe and who is scored. No random number is
    drawn from torch's generators and the training mode is restored, so that a probed run stays bit-equal.
    """

    encoder: VisionTransformer
    tokens: dict[str, DenseTokens]
    windows: Sequence[Window]
    spacing_mm: TripleF
    fold: Fold
    output: Path
    seed: int = 0

    def __call__(self, step: int) -> None:
        """Append {step, auroc (mean), n, per patient, hu_statistics} to probe.jsonl."""
        if distributed.rank() != 0:
            return
        people = {"train_patients": self.fold.train, "test_patients": self.fold.test, "seed": self.seed}
        result = score_features(self._features(), self.tokens, **people)
        plain = score_features(hu_statistics(self.tokens), self.tokens, **people)
        line = {
            "step": step,
            "auroc": result.mean.estimate,
            "n": result.mean.n,
            "hu_statistics": plain.mean.estimate,
            "patients": result.auroc,
        }
        truncate_after(self.output, step - 1)  # a resumed run passes here again
        with self.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def _features(self) -> dict[str, np.ndarray]:
        training = self.encoder.training
        device = next(self.encoder.parameters()).device
        spacing = torch.tensor([self.spacing_mm], dtype=torch.float32, device=device)

        def patches(crops: torch.Tensor) -> torch.Tensor:
            """Return the patch tokens of windowed crops."""
            return self.encoder(crops.to(device), spacing=spacing.expand(len(crops), 3)).patches

        self.encoder.eval()
        try:
            return encode_tokens(patches, self.tokens, windows=self.windows)
        finally:
            self.encoder.train(training)


def dense_hook(
    encoder: VisionTransformer,
    store: Store,
    masks: str | Path,
    preprocessing: Preprocessing,
    *,
    test: Sequence[str],
    run: Path,
    positions: int = 8,
    seed: int = 0,
) -> DenseHook:
    """Return the hook for a run that trains on `store`: patients outside `test` that have a mask fit the probe.

    preprocessing: as export will write it (`fmct.publish.export.preprocessing_of`). Raises DataError.
    """
    matched = match_masks(store, masks)
    entries = [entry for entry in store.entries if entry.id in matched]
    tokens = draw_tokens(
        dense_cases(store, entries, matched, preprocessing),
        size=preprocessing.input.size_voxels,
        patch=encoder.patch_size,
        positions=positions,
        seed=seed,
    )
    fold = Fold(tuple(sorted(set(tokens) - set(test))), tuple(sorted(set(tokens) & set(test))))
    spacing = preprocessing.input.spacing_mm
    assert spacing is not None  # dense_cases refuses anything else
    return DenseHook(encoder, tokens, preprocessing.windows, spacing, fold, run / PROBE_LOG, seed)
