"""Export of any run folder, of pretraining or of a downstream task, with the self-test of what was written."""

from pathlib import Path

from fmct.errors import ConfigError
from fmct.publish.export import export
from fmct.publish.export_model import export_model, parts_of
from fmct.publish.load import PublishedEncoder, load_encoder
from fmct.publish.load_model import load_model
from fmct.publish.task_record import is_downstream_run


def export_run(
    run: str | Path,
    folder: str | Path,
    *,
    step: int | None = None,
    student: bool = False,
    with_heads: bool = False,
    license_id: str = "other",
    overwrite: bool = False,
) -> str:
    """Write the encoder or model folder of a run, test it, and return what to tell the user.

    A folder of several downstream runs (one a seed, one a finding) becomes a folder of as many models. student,
    with_heads: of a pretraining run alone (see fmct.publish.export.export). Raises ConfigError for them beside a
    downstream run, and what the two exports raise.
    """
    run = Path(run)
    if not is_downstream_run(run) and (parts := parts_of(run)):
        said = [
            export_run(
                part, Path(folder) / part.name, step=step, student=student, with_heads=with_heads,
                license_id=license_id, overwrite=overwrite,
            )
            for part in parts
        ]  # fmt: skip
        return "\n".join(said)
    if is_downstream_run(run):
        if with_heads or student:
            raise ConfigError(
                f"{run}: is a run of `fmct finetune`: its heads are part of the model, and it has no teacher. Leave "
                "out --with-heads and --student."
            )
        return _say_model(export_model(run, folder, step=step, license_id=license_id, overwrite=overwrite))
    written = export(
        run, folder, step=step, student=student, with_heads=with_heads, license_id=license_id, overwrite=overwrite
    )
    encoder = load_encoder(written, device="cpu")
    encoder.selftest()
    return (
        f"{written}: the {encoder.facts['source']} of step {encoder.facts['step']}, {describe(encoder)}; self-test "
        f"passed.\nNext: fmct embed {written} SOURCE_OR_STORE features.npz, or fmct publish {written} OWNER/NAME "
        "--dry-run"
    )


def describe(encoder: PublishedEncoder) -> str:
    """Return a line on an encoder's features and input."""
    spec = encoder.preprocessing.input
    size = " × ".join(str(n) for n in spec.size_voxels)
    at = f" at {' × '.join(f'{s:g}' for s in spec.spacing_mm)} mm" if spec.spacing_mm else ""
    return f"{encoder.num_features} features, input {spec.mode} of {size} voxels{at}"


def _say_model(folder: Path) -> str:
    model = load_model(folder, device="cpu")
    model.selftest()
    decision = f"rule {model.decision.rule}" if model.decision else "no operating point: probabilities only"
    return (
        f"{folder}: {model.record.kind} of step {model.facts['step']}, targets {', '.join(model.targets)}, {decision}; "
        f"self-test passed.\nNext: fmct predict {folder} SCANS OUT"
    )
