"""What a run of the published contrast system learns from: its scans, prepared and cached, and what they need."""

import hashlib
import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fmct import distributed
from fmct.contrast.paper_cache import PreparedScans
from fmct.contrast.paper_registration import Template, check_template, read_template
from fmct.contrast.paper_settings import LEGACY_INPUT_SCALE, LegacySwitches, Preparation, preparation
from fmct.data.cohort import Cohort, read_cohort
from fmct.data.sample import Sample
from fmct.data.slice_batches import SliceScans
from fmct.downstream.contrast_paper_config import ContrastPaperTraining
from fmct.downstream.contrast_paper_start import overlap_notes
from fmct.errors import ConfigError, DataError, Refusal
from fmct.models.slice_networks import SliceNetworkConfig
from fmct.probes.during_training import wait_for
from fmct.tasks.contrast_paper import AGGREGATES

log = logging.getLogger(__name__)
PREPARING_LIMIT_S = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Inputs:
    """What a run learns from. scans: by split, those that could be prepared. refused: (sample, why) of the others.

    network: as it is built, the legacy input scale in it.
    """

    cohort: Cohort
    template: Template
    settings: Preparation
    prepared: PreparedScans
    scans: dict[str, SliceScans]
    refused: list[tuple[Sample, Refusal]]
    network: SliceNetworkConfig
    notes: list[str]

    @property
    def architecture(self) -> dict[str, Any]:
        """What template and settings are, for task.json."""
        template = self.template
        facts = {
            "name": template.name,
            "sha256": template.sha256,
            "shape": list(template.voxels.shape),
            "affine": template.affine.tolist(),
        }
        return {"preparation": self.settings.to_dict(), "template": facts}


def read_inputs(config: ContrastPaperTraining) -> Inputs:
    """Return a run's scans, prepared and cached. Everything a user can get wrong is refused before that begins.

    Raises ConfigError and DataError, among them a split whose scans are of one class, or all refused.
    """
    _check(config)
    network = legacy_network(config.network, config.legacy)
    template = read_template(config.input.template, config.input.spacing, sha256=config.input.template_sha256)
    settings = preparation(config.input, config.legacy)
    check_template(template, settings.profile)
    cohort = read_cohort(config.data)
    notes = overlap_notes(config.start, cohort, config.data.on_overlap, config.splits[2]) if config.start else []
    if config.legacy.active:
        notes.append(f"LEGACY: published defects are switched on: {', '.join(config.legacy.active)}.")
    prepared = PreparedScans(config.cache or f"{config.output}.cache", template, settings)
    samples = [s for s in cohort.samples if s.split in config.splits and not math.isnan(s.labels[0])]
    cohort = replace(cohort, samples=tuple(samples))
    _prepare(prepared, cohort, config.workers)
    scans, refused = {}, []
    for split in config.splits:
        scans[split], out = _scans_of(cohort, split, prepared)
        refused += out
    for split in config.splits[:2]:
        scans[split].check_classes(split)
    for sample, why in refused:
        log.warning("series %s of %s is left out: %s", sample.entry.id, sample.split, why)
    kept = {name.split("/")[1] for part in scans.values() for name in part.ids}
    cohort = replace(cohort, samples=tuple(s for s in cohort.samples if s.entry.id in kept))
    return Inputs(cohort, template, settings, prepared, scans, refused, network, notes)


def legacy_network(network: SliceNetworkConfig, legacy: LegacySwitches) -> SliceNetworkConfig:
    """Return the network's configuration with the published input scale where that switch is on."""
    if not legacy.input_scale:
        return network
    if network.name != "efficientnet_b4" or network.input_scale != 1.0:
        raise ConfigError(
            "legacy.input_scale: only Keras' EfficientNet divides its input by 255 once more; it goes with "
            f"network.name=efficientnet_b4 and no network.input_scale of its own. Got {network.name} and "
            f"{network.input_scale:g}."
        )
    return replace(network, input_scale=LEGACY_INPUT_SCALE)


def _check(config: ContrastPaperTraining) -> None:
    if len(config.data.targets) != 1 or not config.data.labels or config.data.masks:
        raise ConfigError(
            f"data.targets: this recipe learns one label of a table, such as data.targets=[contrast] with data.labels; "
            f"got {config.data.targets}."
        )
    if config.aggregate not in AGGREGATES or len(config.splits) != 3 or config.epochs < 1:
        raise ConfigError(
            f"aggregate is one of {', '.join(AGGREGATES)}, splits are three names, epochs at least 1; got "
            f"{config.aggregate!r}, {', '.join(config.splits)} and {config.epochs}."
        )
    if (config.start_optimizer or config.freeze) and not config.start:
        raise ConfigError("start_optimizer and freeze go with start=RUN, the run whose network is trained on.")


def _prepare(prepared: PreparedScans, cohort: Cohort, workers: int) -> None:
    """Prepare every scan on rank 0; the other ranks wait without a collective."""
    entries = [sample.entry for sample in cohort.samples]
    names = hashlib.sha256(" ".join(sorted(entry.content_hash for entry in entries)).encode()).hexdigest()[:16]
    done = prepared.folder / f"ready-{names}"
    if distributed.rank() == 0:
        log.info("preparing %d scans in %s", len(entries), prepared.folder)
        prepared.make(cohort.store, entries, workers=workers)
        done.touch()
    wait_for(done, PREPARING_LIMIT_S)


def _scans_of(cohort: Cohort, split: str, prepared: PreparedScans) -> tuple[SliceScans, list[tuple[Sample, Refusal]]]:
    """Return the prepared scans of a split with their labels, joined by id, and those that were refused."""
    samples = {sample.entry.id: sample for sample in cohort.of(split)}
    arrays, inside, labels, ids, refused = [], [], [], [], []
    for entry, found in prepared.all([sample.entry for sample in samples.values()]):
        sample = samples[entry.id]
        if isinstance(found, Refusal):
            refused.append((sample, found))
            continue
        arrays.append(found.slices)
        inside.append(found.inside)
        labels.append(sample.labels[0])
        ids.append(f"{sample.patient}/{entry.id}")
    if not arrays:
        codes = ", ".join(sorted({why.code for _, why in refused}))
        raise DataError(f"split {split}: all of its {len(refused)} scans are refused ({codes}); see the log for each.")
    return SliceScans(arrays, inside, np.array(labels), ids), refused
