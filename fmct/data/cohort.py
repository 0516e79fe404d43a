"""A cohort: the series of a store with their labels, masks, pairs and splits, all checked before anything runs."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fmct import randomness
from fmct.data.cohort_checks import check_samples
from fmct.data.label_table import UNKNOWN, read_label_table
from fmct.data.mask_bank import MaskBank, MaskOptions
from fmct.data.mask_files import match_masks
from fmct.data.pairs import Pairs, read_pairs
from fmct.data.sample import Sample
from fmct.data.sampler import meets
from fmct.data.store_names import StoreNames
from fmct.errors import ConfigError, DataError
from fmct.registration.pair_quality import PairPolicy
from fmct.store.manifest import Entry
from fmct.store.reader import Store
from fmct.store.splits import SPLITS

__all__ = ["Cohort", "CohortConfig", "Sample", "few_shot", "overlap", "read_cohort", "refuse_overlap"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CohortConfig:
    """Where labelled data lies.

    labels: a CSV, Parquet or JSON-lines table (see fmct.data.label_table) with a column for each of `targets`; patients
    and series by the store's pseudonyms or by the names they were ingested under (STORE.sources.csv beside the store).
    masks: folder of NIfTI, DICOM-SEG or RTSTRUCT masks, matched as fmct.data.mask_files says, mask_table where names do
    not tell. mask_target: the target that the masks show (empty: the first one). Without a table of labels that target
    is 1 where the mask has a lesion and 0 where it is empty. pairs: the pairs table; resample_pairs: paired scans may
    lie on another grid. splits: CSV with the columns patient and split (empty: the table's column split, else
    STORE/splits.csv). filter: which series are meant (see fmct.data.sampler), paired scans apart. on_overlap:
    `refuse` an encoder that was pretrained on a patient of the test split, or `report` it.
    """

    store: str = ""
    labels: str = ""
    targets: list[str] = field(default_factory=list)
    masks: str = ""
    mask_table: str = ""
    mask_target: str = ""
    mask_options: MaskOptions = field(default_factory=MaskOptions)
    pairs: str = ""
    resample_pairs: bool = False
    pair_policy: PairPolicy = field(default_factory=PairPolicy)
    splits: str = ""
    filter: list[str] = field(default_factory=list)
    on_overlap: str = "refuse"


@dataclass(frozen=True)
class Cohort:
    """Samples in manifest order. mask_target: number of the target that masks show, None where there are no masks.

    notes: what was left out or weighed down, in words.
    """

    store: Store
    samples: tuple[Sample, ...]
    targets: tuple[str, ...]
    mask_target: int | None
    masks: MaskBank
    notes: tuple[str, ...] = ()

    def of(self, split: str) -> list[Sample]:
        """Return the samples of a split. Raises DataError when there are none."""
        chosen = [sample for sample in self.samples if sample.split == split]
        if not chosen:
            known = ", ".join(sorted({sample.split for sample in self.samples if sample.split})) or "none"
            raise DataError(f"{self.store.path}: no labelled series in the split {split!r}; splits with some: {known}.")
        return chosen

    def patients(self, split: str) -> list[str]:
        """Return the patients of a split, sorted; their place in this list is their number in a batch's `bags`."""
        return sorted({sample.patient for sample in self.of(split)})

    @property
    def uses_masks(self) -> bool:
        """Whether the cohort has masks."""
        return self.mask_target is not None

    @property
    def uses_pairs(self) -> bool:
        """Whether some series has a paired scan."""
        return any(sample.pair is not None for sample in self.samples)

    def keep(self, patients: Sequence[str], *, split: str) -> "Cohort":
        """Return the cohort with only these patients in a split; other splits stay."""
        chosen = set(patients)
        samples = tuple(s for s in self.samples if s.split != split or s.patient in chosen)
        return replace(self, samples=samples)


def read_cohort(config: CohortConfig) -> Cohort:
    """Return the labelled data of a configuration, validated.

    Raises ConfigError for settings that contradict each other, and DataError that names every row or file at fault: a
    patient across splits, an unknown patient or label, a row twice, a mask off its scan's grid or of a negative
    patient, a positive one's empty mask, a target without a positive or negative patient to train on.
    """
    store = _opened(config)
    entries = [entry for entry in store.entries if meets(entry, config.filter)]
    names = StoreNames(store)
    pairs = _pairs(config, store)
    paired = pairs.paired_series
    entries = [entry for entry in entries if entry.id not in paired]
    labels, table_splits = _labels(config, names, entries)
    masks = match_masks(store, config.masks, entries=entries, table=config.mask_table or None) if config.masks else {}
    for pair in pairs.of.values():
        if pair.mask_falls:
            masks.pop(pair.entry.id, None)
    bank = MaskBank(_cache(config, store), config.mask_options)
    splits = _splits(config, store, names, table_splits)
    target = (config.targets.index(config.mask_target) if config.mask_target else 0) if config.masks else None
    samples: list[Sample] = []
    for entry in entries:
        known = labels.get(entry.id, (UNKNOWN,) * len(config.targets))
        pair = pairs.of.get(entry.id)
        fallen = pair is not None and pair.mask_falls
        samples.append(
            _sample(entry, known, masks.get(entry.id), bank, target, split=splits.get(entry.patient, ""), fallen=fallen)
        )
        if pair is not None and pair.paired is not None:
            samples[-1] = replace(samples[-1], pair=pair.paired, pair_weight=pair.weight)
        if not config.labels:
            samples[-1] = _labelled_by_mask(samples[-1], target if config.targets else None)
    notes = check_samples(store, samples, config.targets, target, where=config.labels or config.masks)
    told = (*pairs.notes, *notes)
    cohort = Cohort(store, tuple(s for s in samples if s.split), tuple(config.targets), target, bank, told)
    for note in notes:  # those of the pairs were logged as they were read
        log.info("%s", note)
    return cohort


def few_shot(cohort: Cohort, shots: int, *, seed: int, split: str = "train", target: str = "") -> Cohort:
    """Return the cohort with `shots` patients in a split, drawn by the seed; smaller draws are part of larger ones.

    target: draw `shots` positive and `shots` negative patients of it; a patient is positive when one of its series is.
    Raises ConfigError when there are too few.
    """
    if target and target not in cohort.targets:
        raise ConfigError(f"few_shot: no target {target!r}; there are {', '.join(cohort.targets) or 'none'}.")
    groups: dict[str, list[str]] = {"": cohort.patients(split)}
    if target:
        known = patient_labels(cohort.of(split), cohort.targets.index(target))
        groups = {
            word: sorted(patient for patient, label in known.items() if label == value)
            for word, value in (("positive", 1.0), ("negative", 0.0))
        }
    chosen: list[str] = []
    for word, patients in groups.items():
        if not 1 <= shots <= len(patients):
            raise ConfigError(
                f"few_shot: {shots} {word} patients of the split {split} were asked for; it has {len(patients)}."
            )
        order = randomness.permutation(len(patients), seed, "few-shot", target, word)
        chosen += [patients[number] for number in order[:shots].tolist()]
    return cohort.keep(chosen, split=split)


def patient_labels(samples: Sequence[Sample], target: int) -> dict[str, float]:
    """Return {patient: 1 if a series is positive, 0 if all known ones are negative, NaN where nothing is known}."""
    found: dict[str, float] = {}
    for sample in samples:
        label = sample.labels[target]
        before = found.get(sample.patient, UNKNOWN)
        found[sample.patient] = label if before != before else before if label != label else max(before, label)
    return found


def overlap(cohort: Cohort, facts: Mapping[str, object], *, split: str = "test") -> list[str]:
    """Return the patients of a split whom an encoder was pretrained on: one of their series in the store, paired ones
    too, has the voxels of a series in its card's training corpus.

    facts: of the encoder (see fmct.publish.facts); without a corpus nothing can be excluded, and nobody is returned.
    """
    corpus = facts.get("corpus")
    known = set(corpus.get("voxel_hashes", ())) if isinstance(corpus, Mapping) else set()
    lengths = {len(digest) for digest in known}
    seen = {entry.patient for entry in cohort.store.entries if any(entry.voxel_hash[:n] in known for n in lengths)}
    return sorted({sample.patient for sample in cohort.samples if sample.split == split} & seen)


def refuse_overlap(
    cohort: Cohort, facts: Mapping[str, object], *, on_overlap: str = "refuse", split: str = "test"
) -> list[str]:
    """Return notes for the report about test patients that the encoder was pretrained on.

    Raises DataError when there are some, unless on_overlap is `report`; ConfigError for another word.
    """
    if on_overlap not in ("refuse", "report"):
        raise ConfigError(f"on_overlap={on_overlap}: expected refuse or report.")
    corpus = facts.get("corpus")
    if not isinstance(corpus, Mapping) or not corpus.get("voxel_hashes"):
        return ["the encoder does not say which series it was pretrained on: an overlap cannot be excluded."]
    shared = overlap(cohort, facts, split=split)
    if not shared:
        return []
    tested = len({sample.patient for sample in cohort.samples if sample.split == split})
    listed = ", ".join(shared[:8]) + (f" and {len(shared) - 8} more" if len(shared) > 8 else "")
    if on_overlap == "refuse":
        raise DataError(
            f"the encoder was pretrained on {len(shared)} of the {tested} patients of the split {split} ({listed}): "
            "what it scores there says nothing about new patients. Take an encoder pretrained without them, move them "
            "to another split, or have it done and reported: on_overlap=report."
        )
    return [f"TRANSDUCTIVE: the encoder was pretrained on {len(shared)} of {tested} patients of {split}: {listed}."]


def _opened(config: CohortConfig) -> Store:
    if not config.store:
        raise ConfigError("data.store: no store named. Add data.store=PATH to the command (fmct ingest makes one).")
    if not config.labels and not config.masks:
        raise ConfigError("data: neither labels nor masks are given, so that there is nothing to learn from.")
    if config.labels and not config.targets:
        raise ConfigError("data.targets: name the columns of the label table to learn, such as data.targets=[pe].")
    if len(set(config.targets)) != len(config.targets):
        raise ConfigError(f"data.targets: one is named twice in {', '.join(config.targets)}.")
    if not config.labels and len(config.targets) > 1:
        raise ConfigError("data.targets: masks alone tell one target; give a table of labels for more.")
    if config.mask_target and (config.mask_target not in config.targets or not config.masks):
        raise ConfigError(f"data.mask_target={config.mask_target}: needs masks, and to be one of data.targets.")
    return Store.open(config.store)


def _cache(config: CohortConfig, store: Store) -> Path:
    given = config.mask_options.cache
    return Path(given) if given else store.path.with_name(store.path.name + ".masks")


def _pairs(config: CohortConfig, store: Store) -> Pairs:
    if not config.pairs:
        return Pairs({})
    return read_pairs(config.pairs, store, policy=config.pair_policy, resample=config.resample_pairs)


def _labels(
    config: CohortConfig, names: StoreNames, entries: Sequence[Entry]
) -> tuple[dict[str, tuple[float, ...]], dict[str, str]]:
    """Return ({entry id: labels}, {patient: split}) of the label table. A series' own row goes before its patient's."""
    if not config.labels:
        return {}, {}
    rows = read_label_table(config.labels, config.targets)
    return names.labels(rows, entries, config.targets, Path(config.labels))


def _splits(config: CohortConfig, store: Store, names: StoreNames, of_table: Mapping[str, str]) -> dict[str, str]:
    """Return {patient pseudonym: split}: of the named file, else the label table's, else the store's."""
    splits = names.splits(Path(config.splits)) if config.splits else dict(of_table)
    if not splits:
        splits = names.splits(store.path / SPLITS) if (store.path / SPLITS).is_file() else {}
    if not splits:
        raise DataError(
            f"{store.path}: no patient has a split. Run: fmct split {store.path} (or give data.splits=TABLE with the "
            "columns patient and split)."
        )
    return splits


def _sample(
    entry: Entry,
    labels: tuple[float, ...],
    path: Path | None,
    bank: MaskBank,
    target: int | None,
    *,
    split: str,
    fallen: bool,
) -> Sample:
    """Return a series with what is known of it. A negative without a mask is known to have no lesion."""
    mask = bank.mask(entry, path) if path is not None else None
    label = labels[target] if target is not None and labels else UNKNOWN
    negative = target is not None and path is None and label == 0 and not fallen
    return Sample(
        entry=entry,
        patient=entry.patient,
        split=split,
        labels=labels,
        mask=None if mask is None or mask.empty else path,
        mask_known_empty=negative or (mask is not None and mask.empty),
        lesion_mm3=0.0 if mask is None else mask.volume_mm3,
        facts=entry.facts,
    )


def _labelled_by_mask(sample: Sample, target: int | None) -> Sample:
    """Return a sample whose one label says whether its mask has a lesion."""
    if target is None:
        return sample
    return replace(sample, labels=(1.0 if sample.mask else 0.0 if sample.mask_known_empty else UNKNOWN,))
