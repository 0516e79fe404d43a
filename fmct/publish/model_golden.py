"""Golden numbers of a downstream network: what it made of the closed-form input when it was exported."""

import hashlib
from typing import Any

import torch

from fmct.publish import golden
from fmct.publish.task_record import TaskRecord
from fmct.publish.window_output import WindowOutput

_SHOWN = 4  # voxels along the main diagonal of a segmentation that are kept as they are


def model_numbers(run: Any, record: TaskRecord, device: torch.device) -> dict[str, Any]:
    """Return golden.json's payload: `run(x, spacing=…)` on one window of the closed-form input, in fp32."""
    size = record.preprocessing.input.size_voxels
    x = golden.golden_input(record.in_channels, size).to(device)
    spacing = torch.tensor([list(record.spacing_mm)], dtype=torch.float32, device=device)
    with golden.full_precision(device):
        output: WindowOutput = run(x, spacing=spacing)
    return {
        "tolerance": golden.TOLERANCE,
        "input": {
            "formula": golden.INPUT,
            "shape": [1, record.in_channels, *size],
            "spacing_mm": list(record.spacing_mm),
        },
        "volume": golden.VOLUME,
        "model": _numbers(output),
        "preprocessing": golden.preprocessing_numbers(record.preprocessing),
    }


def _numbers(output: WindowOutput) -> dict[str, Any]:
    """Return per target the logits of a classification, and mean, spread and diagonal of a segmentation."""
    found: dict[str, Any] = {}
    digest = hashlib.sha256()
    if output.classification is not None:
        logits = output.classification[0].float().cpu()
        found["classification"] = logits.tolist()
        digest.update(logits.numpy().tobytes())
    if output.segmentation is not None:
        logits = output.segmentation[0].float().cpu().contiguous()
        flat = logits.double().flatten(1)
        places = [[round(share * (n - 1) / (_SHOWN - 1)) for n in logits.shape[1:]] for share in range(_SHOWN)]
        found["segmentation_mean"] = flat.mean(dim=1).tolist()
        found["segmentation_spread"] = flat.std(dim=1, correction=0).tolist()
        found["segmentation_diagonal"] = [float(logits[t, z, y, x]) for t in range(len(logits)) for z, y, x in places]
        digest.update(logits.numpy().tobytes())
    return {**found, "sha256": digest.hexdigest()}
