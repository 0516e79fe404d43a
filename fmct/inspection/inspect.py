"""What is this scan, store, run or encoder, and is it sane.

What reads runs and encoders is imported when a folder may be one: torch takes seconds, and a store or file needs none.
"""

from pathlib import Path

from fmct.errors import DataError, FmctError
from fmct.inspection.findings import Findings
from fmct.inspection.scan import inspect_scan
from fmct.inspection.store import SAMPLE, inspect_store
from fmct.store import is_store


def inspect_path(path: str | Path, *, modality: str = "CT", sample: int = SAMPLE) -> Findings:
    """Return what `path` is and whether it is sane.

    modality: what a scan is taken as. sample: how many series of a store are read whole (negative: all).
    Raises DataError when the path is none of these things.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder. Expected a scan, a folder of scans, a store, a run or an encoder."
        )
    if path.is_dir():
        if is_store(path):
            return inspect_store(path, sample=sample)
        from fmct.inspection.run import inspect_run, is_run
        from fmct.publish import layout

        if is_run(path):
            return inspect_run(path)
        if layout.is_encoder(path):
            return inspect_encoder(path)
    return inspect_scan(path, modality=modality)


def inspect_encoder(path: Path) -> Findings:
    """Return the findings on an encoder folder: card facts, checksums, golden numbers."""
    from fmct.publish import layout
    from fmct.publish.load import load_encoder

    findings = Findings("encoder")
    try:
        encoder = load_encoder(path, device="cpu")
        spec = encoder.preprocessing.input
        corpus = encoder.facts.get("corpus") or {}
        findings.facts = {
            "features": encoder.num_features,
            "patch_voxels": list(encoder.model.patch_size),
            "parameters": sum(p.numel() for p in encoder.model.parameters()),
            "modality": encoder.preprocessing.modality,
            "windows": {w.name or str(n): [w.low, w.high] for n, w in enumerate(encoder.preprocessing.windows)},
            "input": {"mode": spec.mode, "voxels": list(spec.size_voxels), "spacing_mm": list(spec.spacing_mm or ())},
            "source": encoder.facts.get("source"),
            "step": encoder.facts.get("step"),
            "recipe": encoder.facts.get("recipe"),
            "corpus": {key: corpus.get(key) for key in ("series", "patients", "modality", "fingerprint")},
            "alarms": encoder.facts.get("alarms"),
            "versions": encoder.facts.get("versions"),
            "fingerprint": layout.fingerprint(path),
        }
        test = encoder.selftest()
        findings.facts["selftest"] = {"largest_relative_difference": test.worst, "bit_equal": test.bit_equal}
    except FmctError as error:
        findings.faults.append(str(error))
    return findings
