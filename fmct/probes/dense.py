"""The dense probe: can a linear classifier on frozen patch tokens tell lesion from other soft tissue?

Windows are drawn uniformly, fully inside the scan: a grid of windows would tell from a token's place in its window
where a scan that was cropped around its lesion has it. Tokens of fat, bone and air are left out: those, HU alone
would tell. Lesion: mask fraction above .9; background: below .1; in between is not judged.
Classifier: logistic regression on standardised features, classes balanced, one C for all, chosen among `costs` by
cross-validation over training patients. Score: AUROC per test patient, then the mean over patients.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fmct.errors import DataError
from fmct.metrics.intervals import Interval, t_interval
from fmct.randomness import generator
from fmct.shapes import Triple, patch_grid
from fmct.windows import Window, apply_windows

SOFT_TISSUE_HU = (-60.0, 150.0)
LESION_FRACTION, BACKGROUND_FRACTION = 0.9, 0.1
COSTS = (1e-3, 1e-2, 1e-1, 1.0)
STATISTICS = ("mean", "standard deviation", "smallest", "median", "largest")
_INNER_FOLDS = 3
_BATCH = 32

DenseEncoder = Callable[[torch.Tensor], torch.Tensor]
Features = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class DenseCase:
    """One series at the probe's spacing: hu (D, H, W) and mask (D, H, W), the lesion's share of each voxel in 0..1."""

    patient: str
    hu: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class DenseTokens:
    """The windows and tokens of one patient, drawn once and judged under every encoder.

    crops: (P, D, H, W) float32 HU. judged: (P, N) bool, N tokens a window, z slowest. lesion: (M,) bool and
    statistics: (M, 5) HU of the judged tokens, in the order in which features come.
    """

    crops: np.ndarray
    judged: np.ndarray
    lesion: np.ndarray
    statistics: np.ndarray


@dataclass(frozen=True)
class DenseProbeResult:
    """AUROC of each test patient, and what it rests on.

    not_scored: {patient: reason}. cost: the C in force. tokens: {patient: (lesion, background)} of all patients.
    """

    auroc: dict[str, float]
    not_scored: dict[str, str]
    cost: float
    tokens: dict[str, tuple[int, int]]

    @property
    def mean(self) -> Interval:
        """The mean over test patients with a t interval."""
        return t_interval(list(self.auroc.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "mean": self.mean.to_dict(),
            "auroc": self.auroc,
            "not_scored": self.not_scored,
            "cost": self.cost,
            "tokens": {name: list(counts) for name, counts in self.tokens.items()},
        }


def dense_probe(
    encoder: DenseEncoder,
    cases: Sequence[DenseCase],
    *,
    windows: Sequence[Window],
    size: Triple,
    patch: Triple,
    train_patients: Sequence[str],
    test_patients: Sequence[str],
    seed: int = 0,
    positions: int = 8,
    costs: Sequence[float] = COSTS,
) -> DenseProbeResult:
    """Return the probe of one encoder: (B, C, D, H, W) windowed crops → (B, N, E) patch tokens, z slowest.

    positions: windows drawn per case. costs: one C, or several to choose among. To compare encoders, call
    `draw_tokens` once and `score_features` per encoder; both agree with this. Raises DataError.
    """
    tokens = draw_tokens(cases, size=size, patch=patch, positions=positions, seed=seed)
    features = encode_tokens(encoder, tokens, windows=windows)
    return score_features(
        features, tokens, train_patients=train_patients, test_patients=test_patients, costs=costs, seed=seed
    )


def draw_tokens(
    cases: Iterable[DenseCase], *, size: Triple, patch: Triple, positions: int = 8, seed: int = 0
) -> dict[str, DenseTokens]:
    """Return the windows and judged tokens of every patient; patients without a series as large as a window are absent.

    A window's place depends on seed, patient and the series' number only. Raises ConfigError when the patch does not
    divide `size`.
    """
    patch_grid(size, patch)
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {}
    for case in cases:
        if any(n < s for n, s in zip(case.hu.shape, size, strict=True)):
            continue
        found = parts.setdefault(case.patient, [])
        random = generator(seed, "dense-probe", case.patient, len(found))
        room = np.asarray(case.hu.shape) - np.asarray(size) + 1
        starts = random.integers(0, room, size=(positions, 3))
        hu = np.stack([_crop(case.hu, start, size) for start in starts]).astype(np.float32)
        share = _token_voxels(np.stack([_crop(case.mask, start, size) for start in starts]), patch).mean(axis=2)
        found.append((hu, share))
    return {patient: _judge(found, patch) for patient, found in parts.items()}


def encode_tokens(
    encoder: DenseEncoder, tokens: Mapping[str, DenseTokens], *, windows: Sequence[Window], batch_size: int = _BATCH
) -> dict[str, np.ndarray]:
    """Return {patient: (M, E) float32 features of the judged tokens}. Raises DataError for another count or NaN."""
    features = {}
    for patient, drawn in tokens.items():
        parts = []
        for first in range(0, len(drawn.crops), batch_size):
            judged = drawn.judged[first : first + batch_size]
            with torch.inference_mode():
                crops = apply_windows(torch.from_numpy(drawn.crops[first : first + batch_size]), windows)
                output = encoder(crops).float().cpu().numpy()
            if output.ndim != 3 or output.shape[:2] != judged.shape:
                raise DataError(
                    f"dense probe: expected features of shape (windows, tokens, width) = {(*judged.shape, 'E')}, got "
                    f"{output.shape}. Give the encoder's patch size, and patch tokens only (no CLS, no registers)."
                )
            parts.append(output[judged])
        features[patient] = np.concatenate(parts)
        if not np.isfinite(features[patient]).all():
            raise DataError(f"dense probe: features of patient {patient} are not finite: the encoder has diverged.")
    return features


def mean_hu(tokens: Mapping[str, DenseTokens]) -> dict[str, np.ndarray]:
    """Return {patient: (M, 1)}: each token's mean HU, the plainest intensity baseline."""
    return {patient: drawn.statistics[:, :1] for patient, drawn in tokens.items()}


def hu_statistics(tokens: Mapping[str, DenseTokens]) -> dict[str, np.ndarray]:
    """Return {patient: (M, 5)}: each token's HU STATISTICS, an intensity baseline that also sees texture."""
    return {patient: drawn.statistics for patient, drawn in tokens.items()}


def score_features(
    features: Features,
    tokens: Mapping[str, DenseTokens],
    *,
    train_patients: Sequence[str],
    test_patients: Sequence[str],
    costs: Sequence[float] = COSTS,
    seed: int = 0,
    tokens_per_patient: int = 500,
) -> DenseProbeResult:
    """Return the AUROC of each test patient under a classifier fitted on the training patients.

    tokens_per_patient: at most so many training tokens a patient, drawn by seed, so that a large scan does not
    outweigh the rest. Raises DataError when a patient is in both lists, or training holds one class only.
    """
    both = sorted(set(train_patients) & set(test_patients))
    if both:
        raise DataError(f"dense probe: {', '.join(both)} in training and test; a patient belongs to one of them.")
    rows = {
        patient: generator(seed, "probe-tokens", patient).permutation(len(tokens[patient].lesion))[:tokens_per_patient]
        for patient in train_patients
        if patient in tokens
    }
    x = {patient: features[patient][kept].astype(np.float64) for patient, kept in rows.items()}
    y = {patient: tokens[patient].lesion[kept] for patient, kept in rows.items()}
    cost = choose_cost(x, y, costs)
    probe = LinearProbe.fit(np.concatenate(list(x.values())), np.concatenate(list(y.values())), cost)
    auroc, not_scored = {}, {}
    for patient in test_patients:
        reason = _unscorable(tokens.get(patient))
        if reason:
            not_scored[patient] = reason
        else:
            auroc[patient] = float(roc_auc_score(tokens[patient].lesion, probe.decide(features[patient])))
    counts = {name: (int(t.lesion.sum()), int((~t.lesion).sum())) for name, t in tokens.items()}
    return DenseProbeResult(auroc, not_scored, cost, counts)


@dataclass(frozen=True)
class LinearProbe:
    """A linear decision on features that were standardised with the training set's mean and deviation."""

    weights: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, cost: float) -> "LinearProbe":
        """Return the balanced logistic regression of (M, E) features on (M,) bool. Raises DataError for one class."""
        if y.all() or not y.any():
            raise DataError(
                f"dense probe: the {len(y)} training tokens are all {'lesion' if y.any() else 'background'}; a "
                "classifier needs both. Check that the masks lie on the scans, or give more training patients."
            )
        mean, deviation = x.mean(axis=0), x.std(axis=0)
        deviation = np.where(deviation > 1e-12, deviation, 1.0)
        model = LogisticRegression(C=cost, class_weight="balanced", solver="newton-cholesky", max_iter=200)
        model.fit((x - mean) / deviation, y)
        return cls(model.coef_[0], mean, deviation)

    def decide(self, x: np.ndarray) -> np.ndarray:
        """Return (M,) scores, larger for lesion; the intercept is left out, since AUROC does not see it."""
        return ((x - self.mean) / self.deviation) @ self.weights


def choose_cost(x: Features, y: Features, costs: Sequence[float]) -> float:
    """Return the C with the best mean AUROC over held-out training patients, in folds of whole patients."""
    if len(costs) == 1:
        return float(costs[0])
    patients = [patient for patient in x if y[patient].any() and not y[patient].all()]
    folds = [patients[number::_INNER_FOLDS] for number in range(_INNER_FOLDS)]
    if len(patients) < 2 * _INNER_FOLDS:
        return float(costs[len(costs) // 2])
    scores = np.zeros(len(costs))
    for held in folds:
        kept = [patient for patient in x if patient not in held]
        inner_x, inner_y = np.concatenate([x[p] for p in kept]), np.concatenate([y[p] for p in kept])
        for number, cost in enumerate(costs):
            probe = LinearProbe.fit(inner_x, inner_y, cost)
            scores[number] += sum(float(roc_auc_score(y[p], probe.decide(x[p]))) for p in held)
    return float(costs[int(np.argmax(scores))])


def _crop(voxels: np.ndarray, start: np.ndarray, size: Triple) -> np.ndarray:
    z, y, x = (slice(int(first), int(first) + side) for first, side in zip(start, size, strict=True))
    return voxels[z, y, x]


def _token_voxels(crops: np.ndarray, patch: Triple) -> np.ndarray:
    """Return (P, N, voxels of a patch) of (P, D, H, W), tokens z slowest."""
    (count, d, h, w), (a, b, c) = crops.shape, patch
    blocks = crops.reshape(count, d // a, a, h // b, b, w // c, c).transpose(0, 1, 3, 5, 2, 4, 6)
    return blocks.reshape(count, (d // a) * (h // b) * (w // c), a * b * c)


def _judge(found: Sequence[tuple[np.ndarray, ...]], patch: Triple) -> DenseTokens:
    crops, share = (np.concatenate([part[number] for part in found]) for number in range(2))
    voxels = _token_voxels(crops, patch)
    mean = voxels.mean(axis=2)
    low, high = SOFT_TISSUE_HU
    judged = (mean >= low) & (mean <= high) & ((share > LESION_FRACTION) | (share < BACKGROUND_FRACTION))
    kept = voxels[judged]
    statistics = np.stack([mean[judged], kept.std(1), kept.min(1), np.median(kept, 1), kept.max(1)], axis=1)
    return DenseTokens(crops, judged, share[judged] > LESION_FRACTION, statistics)


def _unscorable(drawn: DenseTokens | None) -> str:
    """Return why a patient has no AUROC, or nothing."""
    if drawn is None:
        return "no series as large as a window"
    lesion = int(drawn.lesion.sum())
    if lesion == 0 or lesion == len(drawn.lesion):
        return f"{lesion} lesion and {len(drawn.lesion) - lesion} background tokens: AUROC needs both"
    return ""
