"""`fmct probe --masks`: the dense probe of a published encoder on a store, beside random weights and HU alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fmct.data.mask_files import match_masks
from fmct.errors import DataError
from fmct.probes.cohort import Cohort, choose_patients
from fmct.probes.comparison import ProbeReport, compare_patients, random_encoder
from fmct.probes.dense import (
    COSTS,
    DenseProbeResult,
    DenseTokens,
    Features,
    draw_tokens,
    encode_tokens,
    hu_statistics,
    mean_hu,
    score_features,
)
from fmct.probes.dense_cases import dense_cases
from fmct.publish.load import PublishedEncoder
from fmct.store.manifest import Entry
from fmct.store.reader import Store


def probe_masks(
    encoder: PublishedEncoder,
    store: Store,
    entries: Sequence[Entry],
    masks: str | Path,
    *,
    table: str | Path | None = None,
    test: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    layers: Sequence[int] | None = None,
    positions: int = 8,
    seed: int = 0,
) -> ProbeReport:
    """Return the dense probe over the entries that have a mask in `masks`.

    test: patients to score, see `choose_patients`. seeds: of random initialisation. layers: blocks whose patch tokens
    are joined (counted from 0, negative from the end); None takes the last one's after the final norm. Raises
    DataError.
    """
    matched = match_masks(store, masks, entries=entries, table=table)
    entries = [entry for entry in entries if entry.id in matched]
    cohort = choose_patients(entries, encoder.facts, test=test, seed=seed)
    cases = dense_cases(store, entries, matched, encoder.preprocessing)
    size, patch = encoder.preprocessing.input.size_voxels, encoder.model.patch_size
    tokens = draw_tokens(cases, size=size, patch=patch, positions=positions, seed=seed)
    if not tokens:
        raise DataError(
            f"dense probe: none of the {len(entries)} series with a mask is as large as the encoder's input, "
            f"{size} voxels of {encoder.preprocessing.input.spacing_mm} mm (z, y, x)."
        )

    def scored(features: Features) -> DenseProbeResult:
        """Return the result over the cohort's folds."""
        return score_folds(features, tokens, cohort, seed=seed)

    own = scored(encoded(encoder, tokens, layers))
    random = [scored(encoded(random_encoder(encoder, number), tokens, layers)) for number in seeds]
    plain = {"HU statistics of the token": hu_statistics(tokens), "mean HU of the token": mean_hu(tokens)}
    rows, values = compare_patients(
        [own.auroc],
        [result.auroc for result in random],
        {name: scored(features).auroc for name, features in plain.items()},
    )
    facts = {
        "window_voxels": list(size),
        "spacing_mm": list(encoder.preprocessing.input.spacing_mm or ()),
        "patch": list(patch),
        "windows_per_series": positions,
        "layers": "last, after the final norm" if layers is None else list(layers),
        "classifier": f"logistic regression, standardised, balanced; C = {own.cost:g}, chosen among {COSTS}",
        "random_seeds": list(seeds),
        "seed": seed,
        "folds": [{"train": list(fold.train), "test": list(fold.test)} for fold in cohort.folds],
        "tokens": {patient: list(counts) for patient, counts in own.tokens.items()},
    }
    left_out = [f"patient {patient} is not scored: {reason}." for patient, reason in own.not_scored.items()]
    return ProbeReport("dense", "AUROC, lesion or other soft tissue", rows, facts, [*cohort.notes, *left_out], values)


def score_folds(
    features: Features, tokens: Mapping[str, DenseTokens], cohort: Cohort, *, seed: int = 0
) -> DenseProbeResult:
    """Return the results of every fold as one; the cost is the last fold's."""
    auroc: dict[str, float] = {}
    not_scored: dict[str, str] = {}
    result: Any = None
    for fold in cohort.folds:
        result = score_features(features, tokens, train_patients=fold.train, test_patients=fold.test, seed=seed)
        auroc |= result.auroc
        not_scored |= result.not_scored
    return DenseProbeResult(auroc, not_scored, result.cost, result.tokens)


def encoded(
    encoder: PublishedEncoder, tokens: Mapping[str, DenseTokens], layers: Sequence[int] | None = None
) -> dict[str, Any]:
    """Return {patient: (M, E) features of the judged tokens}; with `layers`, those blocks' tokens joined."""
    spacing = encoder.preprocessing.input.spacing_mm

    def patches(crops: torch.Tensor) -> torch.Tensor:
        """Return the patch tokens of windowed crops, of the chosen layers."""
        placed = torch.tensor([spacing] * len(crops), dtype=torch.float32, device=encoder.device)
        if layers is None:
            return encoder(crops, spacing=placed).patches
        with torch.no_grad():
            parts = encoder.model.forward_intermediates(
                crops.to(encoder.device), indices=list(layers), norm=True, output_fmt="NLC",
                intermediates_only=True, spacing=placed,
            )  # fmt: skip
        return torch.cat(parts, dim=-1)

    return encode_tokens(patches, tokens, windows=encoder.preprocessing.windows)
