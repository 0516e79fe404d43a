"""k-NN and linear probes on one feature vector per series, against a label table, in folds of whole patients."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from sklearn import config_context
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from fmct.errors import DataError
from fmct.inference.embed import embed_entries, scan_of_entry
from fmct.metrics.intervals import RESAMPLES, Interval, bootstrap_interval
from fmct.probes.cohort import Cohort, choose_patients
from fmct.probes.comparison import ENCODER, RANDOM, ProbeReport, Row, random_encoder, seeds_name
from fmct.probes.label_table import Labels
from fmct.probes.ridge import fit_ridge
from fmct.publish.load import PublishedEncoder
from fmct.store.manifest import Entry
from fmct.store.reader import Store

NEIGHBOURS = 5
COST = 1.0


Predictor = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Labels], np.ndarray]


def probe_labels(
    encoder: PublishedEncoder,
    store: Store,
    entries: Sequence[Entry],
    labels: Labels,
    *,
    test: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ProbeReport:
    """Return the k-NN and linear probes of one target, beside random initialisation and HU statistics."""
    known = set(labels.ids)
    chosen = [entry for entry in entries if entry.id in known]
    values = dict(zip(labels.ids, labels.values.tolist(), strict=True))
    y = np.array([values[entry.id] for entry in chosen])
    patients = np.array([entry.patient for entry in chosen])
    check_classes(y, patients, labels)
    strata = None if labels.kind == "continuous" else {p: max(y[patients == p]) for p in set(patients.tolist())}
    cohort = choose_patients(chosen, encoder.facts, test=test, strata=strata, seed=seed)

    def matrix(model: PublishedEncoder) -> np.ndarray:
        """Return the series' vectors, (S, 2E)."""
        return np.stack([embedding.vector for embedding in embed_entries(model, store, chosen)]).astype(np.float64)

    sources = {
        ENCODER: [matrix(encoder)],
        seeds_name(RANDOM, len(seeds)): [matrix(random_encoder(encoder, s)) for s in seeds],
    }
    sources["HU statistics of the series"] = [series_statistics(encoder, store, chosen)]
    rows = []
    for name, predict in (("linear", linear_predictions), (f"{NEIGHBOURS}-NN", knn_predictions)):
        outputs = {
            source: [out_of_fold(x, y, patients, cohort, labels, predict) for x in group]
            for source, group in sources.items()
        }
        rows += _rows(name, outputs, y, patients, cohort, labels, resamples, seed)
    unknown = len(entries) - len(chosen)
    notes = [*cohort.notes, *([f"{unknown} series have no known label and are left out."] if unknown else [])]
    facts = {
        "kind": labels.kind,
        "classes": labels.classes,
        "series": len(chosen),
        "counts": {name: int((y == number).sum()) for number, name in enumerate(labels.classes)},
        "linear": f"logistic regression, standardised, balanced, C = {COST:g}"
        if labels.classes
        else "ridge, λ by folds",
        "k_nearest": f"{NEIGHBOURS} neighbours by cosine, weighted by similarity",
        "folds": [{"train": list(fold.train), "test": list(fold.test)} for fold in cohort.folds],
    }
    return ProbeReport("label", labels.metric, rows, facts, notes)


def check_classes(y: np.ndarray, patients: np.ndarray, labels: Labels) -> None:
    """Raise DataError when a class has one patient only: it could be learned or scored, never both."""
    for number, name in enumerate(labels.classes):
        people = set(patients[y == number].tolist())
        if len(people) < 2:
            raise DataError(
                f"label probe: class {name!r} has {len(people)} patient in this store; fitting and scoring a probe "
                "needs two of each class. Give more labels, or merge classes."
            )


def out_of_fold(
    x: np.ndarray, y: np.ndarray, patients: np.ndarray, cohort: Cohort, labels: Labels, predict: Predictor
) -> np.ndarray:
    """Return each series' prediction by the fold that scores its patient: (S, classes) or (S, 1); NaN if none does."""
    result = np.full((len(y), max(1, len(labels.classes))), np.nan)
    for fold in cohort.folds:
        train, test = np.isin(patients, fold.train), np.isin(patients, fold.test)
        if test.any() and train.any():
            result[test] = predict(x[train], y[train], x[test], patients[train], labels)
    return result


def linear_predictions(
    x: np.ndarray, y: np.ndarray, new: np.ndarray, patients: np.ndarray, labels: Labels
) -> np.ndarray:
    """Return class probabilities of logistic regression, or ridge predictions (M, 1), for `new` (M, E)."""
    if labels.kind == "continuous":
        return fit_ridge(x, y[:, None], patients).predict(new)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    deviation = np.where(deviation > 1e-12, deviation, 1.0)
    classes = np.unique(y.astype(int))
    result = np.zeros((len(new), len(labels.classes)))
    if len(classes) == 1:
        result[:, classes[0]] = 1.0
        return result
    model = LogisticRegression(C=COST, class_weight="balanced", max_iter=5000)
    model.fit((x - mean) / deviation, y.astype(int))
    result[:, classes] = model.predict_proba((new - mean) / deviation)
    return result


def knn_predictions(x: np.ndarray, y: np.ndarray, new: np.ndarray, patients: np.ndarray, labels: Labels) -> np.ndarray:
    """Return class shares, or means (M, 1), of the nearest neighbours by cosine, weighted by similarity."""
    count = min(NEIGHBOURS, len(x))
    settings = {"n_neighbors": count, "metric": "cosine", "weights": _similarity}
    if labels.kind == "continuous":
        return np.asarray(KNeighborsRegressor(**settings).fit(x, y).predict(new)).reshape(-1, 1)
    model = KNeighborsClassifier(**settings).fit(x, y.astype(int))
    result = np.zeros((len(new), len(labels.classes)))
    result[:, model.classes_.astype(int)] = model.predict_proba(new)
    return result


def score(predicted: np.ndarray, y: np.ndarray, labels: Labels) -> float:
    """Return AUROC, macro AUROC or R² of predictions (S, K); NaN where it is undefined (a class is absent)."""
    if labels.kind == "continuous":
        return float(r2_score(y, predicted[:, 0])) if len(y) > 1 and np.ptp(y) > 0 else float("nan")
    present = np.unique(y.astype(int))
    if len(present) < len(labels.classes):
        return float("nan")
    with config_context(assume_finite=True, skip_parameter_validation=True):  # checks once per resample would cost most
        if labels.kind == "binary":
            return float(roc_auc_score(y, predicted[:, 1]))
        return float(np.mean([roc_auc_score(y == number, predicted[:, number]) for number in present]))


def series_statistics(encoder: PublishedEncoder, store: Store, entries: Sequence[Entry]) -> np.ndarray:
    """Return (S, 10) intensity-only features: share of body, and its HU mean, deviation and percentiles."""
    rows = []
    for entry in entries:
        scan = scan_of_entry(encoder.preprocessing, store, entry)
        values = scan.voxels.astype(np.float64) * scan.scale
        body = values[values > scan.foreground_above]
        share = body.size / values.size
        body = body if body.size else values.reshape(-1)
        levels = np.percentile(body, [1, 5, 25, 50, 75, 95, 99])
        rows.append([share, body.mean(), body.std(), *levels])
    return np.asarray(rows)


def _rows(
    name: str,
    outputs: Mapping[str, Sequence[np.ndarray]],
    y: np.ndarray,
    patients: np.ndarray,
    cohort: Cohort,
    labels: Labels,
    resamples: int,
    seed: int,
) -> list[Row]:
    """Return the rows of one probe; seeds are averaged within each resample, differences are paired in it."""
    kept = np.flatnonzero(np.isin(patients, cohort.scored))
    truth = y[kept]
    cache: dict[tuple[str, bytes], float] = {}

    def mean_score(source: str, rows: np.ndarray) -> float:
        """Return the mean over seeds of the score on some rows."""
        key = (source, rows.tobytes())  # one seed: the same resamples come for every source and difference
        if key not in cache:
            cache[key] = float(
                np.mean([score(predicted[kept][rows], truth[rows], labels) for predicted in outputs[source]])
            )
        return cache[key]

    def interval(source: str) -> Interval:
        """Return a source's score."""
        return bootstrap_interval(lambda rows: mean_score(source, rows), patients[kept], resamples=resamples, seed=seed)

    def gain(source: str) -> Interval:
        """Return the encoder's score minus a source's."""
        return bootstrap_interval(
            lambda rows: mean_score(ENCODER, rows) - mean_score(source, rows),
            patients[kept],
            resamples=resamples,
            seed=seed,
        )

    return [
        Row(f"{name}: {source}", interval(source), None if source == ENCODER else gain(source)) for source in outputs
    ]


def _similarity(distance: np.ndarray) -> np.ndarray:
    """Return weights 1 + cosine, from sklearn's cosine distances; a floor keeps a row's sum above zero."""
    return np.maximum(2.0 - distance, 1e-9)
