"""The location probe, label-free: do two crops of one series tell how far apart they lie?

Two crops of about 48 mm that do not overlap; target: the offset in mm from one to the other per axis; ridge regression
on the difference of their frozen features [cls, mean patch]. Score: R² per series against predicting the training
set's mean offset, averaged over the axes that count, then over a patient's series.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fmct.data.series import scan_of_entry
from fmct.errors import DataError
from fmct.probes.cohort import Cohort, choose_patients
from fmct.probes.comparison import ProbeReport, compare_patients, random_encoder
from fmct.probes.dense_cases import scan_on_grid
from fmct.probes.location_pairs import (
    BODY_SHARE,
    REGION_MM,
    PairSettings,
    SeriesPairs,
    crop_voxels,
    draw_pairs,
    load_pairs,
    save_pairs,
)
from fmct.probes.ridge import fit_ridge
from fmct.publish.load import PublishedEncoder
from fmct.shapes import Triple
from fmct.store.manifest import Entry
from fmct.store.reader import Store
from fmct.windows import apply_windows

PAIRS_FILE = "location_pairs.json"
AXES = ("z", "y", "x")
_BATCH = 64
PairFeatures = Mapping[str, np.ndarray]


def probe_location(
    encoder: PublishedEncoder,
    store: Store,
    entries: Sequence[Entry],
    *,
    output: Path | None = None,
    test: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    pairs: int = 24,
    seed: int = 0,
) -> ProbeReport:
    """Return the location probe over a store's entries. output: a folder where the pairs are kept and taken from.

    test, seeds: see `choose_patients` and `probe_masks`. Raises DataError when no series is long enough.
    """
    pre = encoder.preprocessing
    if pre.modality != "CT" or pre.percentiles is not None or pre.input.spacing_mm is None:
        raise DataError("the location probe needs an encoder of CT with HU windows and a fixed spacing.")
    settings = PairSettings(
        crop=crop_voxels(pre.input.spacing_mm, encoder.model.patch_size),
        spacing_mm=pre.input.spacing_mm,
        body_above=-500.0 if pre.input.foreground_above is None else pre.input.foreground_above,
        pairs=pairs,
        seed=seed,
    )
    entries = [entry for entry in entries if entry.modality == pre.modality]
    crops, series = _draw(encoder, store, entries, settings, output)
    if not series:
        raise DataError(
            f"location probe: none of {len(entries)} series is two crops ({settings.crop} voxels of "
            f"{settings.spacing_mm} mm) long on any axis with {BODY_SHARE:.0%} of body in both."
        )
    kept = {pair.entry for pair in series}
    cohort = choose_patients([entry for entry in entries if entry.id in kept], encoder.facts, test=test, seed=seed)

    def scored(features: PairFeatures) -> dict[str, float]:
        """Return R² of each patient."""
        return score_pairs(features, series, cohort)[0]

    own, by_axis = score_pairs(pair_features(_features_of(encoder), crops), series, cohort)
    random = [scored(pair_features(_features_of(random_encoder(encoder, number)), crops)) for number in seeds]
    rows, values = compare_patients([own], random, {"HU statistics of the crop": scored(statistics_features(crops))})
    facts = {
        **{key: list(v) if isinstance(v, tuple) else v for key, v in vars(settings).items()},
        "features": "difference of [cls, mean patch]",
        "r2_by_axis": by_axis,
        "series": len(series),
        "random_seeds": list(seeds),
        "folds": [{"train": list(fold.train), "test": list(fold.test)} for fold in cohort.folds],
        "largest_z_offset_mm": REGION_MM,
    }
    return ProbeReport("location", "R² of the offset between two crops", rows, facts, cohort.notes, values)


def pair_features(encode: Callable[[torch.Tensor], torch.Tensor], crops: Mapping[str, np.ndarray]) -> PairFeatures:
    """Return {entry: (P, F)}: features of second minus first crop. crops: {entry: (2, P, d, h, w) HU}."""
    features = {}
    for entry, both in crops.items():
        flat = torch.from_numpy(both.reshape(-1, *both.shape[2:]))
        parts = [encode(flat[first : first + _BATCH]).float().cpu().numpy() for first in range(0, len(flat), _BATCH)]
        joined = np.concatenate(parts).astype(np.float64)
        if not np.isfinite(joined).all():
            raise DataError("location probe: features are not finite: the encoder has diverged.")
        features[entry] = joined[both.shape[1] :] - joined[: both.shape[1]]
    return features


def statistics_features(crops: Mapping[str, np.ndarray]) -> PairFeatures:
    """Return the intensity-only features: differences of mean, deviation and percentiles of the crops' HU."""

    def statistics(values: torch.Tensor) -> torch.Tensor:
        """Return (B, 7) statistics of the crops' HU."""
        flat = values.flatten(1).float()
        levels = torch.quantile(flat, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]), dim=1).T
        return torch.cat([flat.mean(1, keepdim=True), flat.std(1, keepdim=True), levels], dim=1)

    return pair_features(statistics, crops)


def score_pairs(
    features: PairFeatures, series: Sequence[SeriesPairs], cohort: Cohort
) -> tuple[dict[str, float], dict[str, float]]:
    """Return ({patient: R²}, {axis: mean R² over series}) over the cohort's folds."""
    by_patient: dict[str, list[float]] = {}
    by_axis: dict[str, list[float]] = {axis: [] for axis in AXES}
    for fold in cohort.folds:
        train = [pair for pair in series if pair.patient in set(fold.train)]
        test = [pair for pair in series if pair.patient in set(fold.test)]
        r2: dict[str, list[float]] = {pair.entry: [] for pair in test}
        for axis, name in enumerate(AXES):
            usable = [pair for pair in train if pair.counted[axis]]
            if not usable:
                continue
            x = np.concatenate([features[pair.entry] for pair in usable])
            y = np.concatenate([pair.offset_mm[:, axis : axis + 1] for pair in usable])
            groups = np.concatenate([[pair.patient] * len(pair.offset_mm) for pair in usable])
            model = fit_ridge(x, y, groups)
            for pair in (pair for pair in test if pair.counted[axis]):
                truth = pair.offset_mm[:, axis]
                value = r2_against(truth, model.predict(features[pair.entry])[:, 0], float(y.mean()))
                if value is not None:
                    r2[pair.entry].append(value)
                    by_axis[name].append(value)
        for pair in test:
            if r2[pair.entry]:
                by_patient.setdefault(pair.patient, []).append(float(np.mean(r2[pair.entry])))
    means = {name: float(np.mean(found)) for name, found in by_axis.items() if found}
    return {patient: float(np.mean(found)) for patient, found in by_patient.items()}, means


def r2_against(truth: np.ndarray, predicted: np.ndarray, constant: float) -> float | None:
    """Return 1 − Σ(truth − predicted)² / Σ(truth − constant)², None where the truth is the constant throughout."""
    reference = float(((truth - constant) ** 2).sum())
    return None if reference == 0 else 1 - float(((truth - predicted) ** 2).sum()) / reference


def _draw(
    encoder: PublishedEncoder, store: Store, entries: Sequence[Entry], settings: PairSettings, output: Path | None
) -> tuple[dict[str, np.ndarray], list[SeriesPairs]]:
    """Return ({entry: (2, P, d, h, w) HU crops}, pairs), the pairs from `output` where they lie there already."""
    path = output / PAIRS_FILE if output is not None else None
    fingerprint = store.fingerprint()
    known = (
        {p.entry: p for p in load_pairs(path, settings, fingerprint)} if path is not None and path.is_file() else None
    )
    crops, series = {}, []
    for entry in entries:
        if known is not None and entry.id not in known:
            continue
        hu, _ = scan_on_grid(scan_of_entry(encoder.preprocessing, store, entry), settings.spacing_mm)
        pair = known[entry.id] if known is not None else draw_pairs(entry.id, entry.patient, hu, settings)
        if pair is not None:
            crops[entry.id] = np.stack([_cut(hu, starts, settings.crop) for starts in (pair.first, pair.second)])
            series.append(pair)
    if path is not None and known is None and series:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_pairs(path, series, settings, fingerprint)
    return crops, series


def _cut(hu: np.ndarray, starts: np.ndarray, crop: Triple) -> np.ndarray:
    d, h, w = crop
    return np.stack([hu[z : z + d, y : y + h, x : x + w] for z, y, x in starts.tolist()])


def _features_of(encoder: PublishedEncoder) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return HU crops (B, d, h, w) → (B, 2E) of [cls, mean patch]."""

    def encode(values: torch.Tensor) -> torch.Tensor:
        """Return [cls, mean patch] of HU crops."""
        output = encoder(apply_windows(values, encoder.preprocessing.windows))
        return torch.cat([output.cls, output.patches.mean(dim=1)], dim=1)

    return encode
