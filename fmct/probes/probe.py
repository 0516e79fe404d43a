"""Probes of a published encoder on a store: which ones, on whom, and the files that they leave."""

from collections.abc import Sequence
from pathlib import Path

from fmct.artefacts import write_json, write_text
from fmct.errors import ArtefactError, DataError
from fmct.metrics.intervals import RESAMPLES
from fmct.probes.comparison import FORMAT, ProbeReport
from fmct.probes.label_table import read_labels
from fmct.probes.location import probe_location
from fmct.probes.masks import probe_masks
from fmct.probes.series_labels import probe_labels
from fmct.publish import layout
from fmct.publish.load import PublishedEncoder
from fmct.store.reader import Store


def probe(
    encoder: PublishedEncoder,
    store: Store,
    *,
    masks: str | Path | None = None,
    mask_table: str | Path | None = None,
    labels: str | Path | None = None,
    target: str | None = None,
    kind: str = "auto",
    test: Sequence[str] | None = None,
    seeds: int = 3,
    layers: Sequence[int] | None = None,
    output: Path | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[ProbeReport]:
    """Return the reports of the probes asked for: dense with `masks`, label with `labels`, location with neither.

    seeds: how many random initialisations stand beside the encoder. resamples: of the label probe's bootstrap.
    output: folder for the files of `write_reports` and the location probe's pairs. Raises DataError and ArtefactError.
    """
    entries = [entry for entry in store.entries if entry.modality == encoder.preprocessing.modality]
    if not entries:
        raise DataError(f"{store.path}: holds no {encoder.preprocessing.modality} series, which this encoder takes.")
    if seeds < 1:
        raise DataError(f"--seeds {seeds}: at least one random initialisation stands beside the encoder.")
    numbers = range(seeds)
    reports = []
    if masks is not None:
        reports.append(
            probe_masks(
                encoder, store, entries, masks, table=mask_table, test=test, seeds=numbers, layers=layers, seed=seed
            )
        )
    if labels is not None:
        if not target:
            raise DataError(f"{labels}: name the column to predict with --target NAME.")
        known = read_labels(labels, target, entries, kind=kind)
        reports.append(
            probe_labels(encoder, store, entries, known, test=test, seeds=numbers, resamples=resamples, seed=seed)
        )
    if not reports:
        reports.append(probe_location(encoder, store, entries, output=output, test=test, seeds=numbers, seed=seed))
    if output is not None:
        write_reports(output, reports, encoder, store)
    return reports


def write_reports(folder: Path, reports: Sequence[ProbeReport], encoder: PublishedEncoder, store: Store) -> None:
    """Write FOLDER/probe-NAME.json (stamped, with the encoder's and the store's fingerprints) and .txt per report."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for report in reports:
            origin = {
                "encoder": layout.fingerprint(encoder.folder) if encoder.folder else None,
                "store": store.fingerprint(),
            }
            write_json(folder / f"probe-{report.probe}.json", *FORMAT, {**origin, **report.to_dict()})
            write_text(folder / f"probe-{report.probe}.txt", f"{report}\n")
    except OSError as error:
        raise ArtefactError(f"{folder}: cannot be written ({error.strerror}). Choose another --output.") from None
