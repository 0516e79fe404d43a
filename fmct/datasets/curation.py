"""A public collection's labels as the table that fine-tuning reads, with what is in it told in lines of text."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from fmct.datasets.published_splits import published_splits, write_splits
from fmct.datasets.stored_scans import stored_scans, write_label_table


def curate(
    reader: str, labels: str, source: str, store: str, out: str, *, key_file: str, split_tables: Mapping[str, str]
) -> list[str]:
    """Write the table `out`, and OUT_splits.csv where {split: published file} is given; return what to tell the user.

    reader: the module of a set, which has FINDINGS, `label_scans`, and `read_slice_labels` or `read_reads`; or, where
    the set is of points with diameters, `write_cohort`: then `out` is a folder, and the splits are the set's own
    subsets.
    """
    module = import_module(reader)
    if hasattr(module, "write_cohort"):
        return module.write_cohort(labels, source, store, out, key_file=key_file, splits=split_tables or None)
    read = getattr(module, "read_slice_labels", None) or module.read_reads
    known = read(labels)
    scans = list(stored_scans(source, store, key_file=key_file))
    rows = module.label_scans(scans, known)
    write_label_table(out, module.FINDINGS, [(scan.entry, values) for scan, values in rows])
    told = [f"{out}: {len(rows)} series of {len({scan.entry.patient for scan in scans})} patients."]
    for finding in module.FINDINGS:
        values = [row[finding] for _, row in rows]
        counts = f"{values.count(1.0):>6} with, {values.count(0.0):>6} without, {values.count(None)} unknown"
        told.append(f"  {finding:<20} {counts}")
    if split_tables:
        splits = published_splits(split_tables, scans)
        path = Path(out).with_name(f"{Path(out).stem}_splits.csv")
        write_splits(path, splits)
        told.append(
            f"{path}: " + ", ".join(f"{n} {list(splits.values()).count(n)} patients" for n in split_tables) + "."
        )
    return told
