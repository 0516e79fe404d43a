"""How `fmct predict` reads a scan with a model of the published contrast system: its slices, then one probability.

The model brings its template and settings, so that a scan's result depends on nothing that lies beside it.
"""

import numpy as np
import torch

from fmct.contrast.paper_preprocessing import PreparedScan, prepare
from fmct.contrast.paper_registration import Template
from fmct.contrast.paper_settings import Preparation
from fmct.errors import ArtefactError
from fmct.inference.series_readers import Reading
from fmct.precision import compute_dtype
from fmct.publish.load_model import PublishedModel
from fmct.tasks.contrast_paper import ContrastPaperPredictor, scan_logit, scan_probability
from fmct.tiling import Scan
from fmct.volume import Volume

SLICES_AT_ONCE = 32
TABLE = "slices"


def read_series(model: PublishedModel, scan: Scan, *, precision: str) -> Reading:
    """Return a scan's probability and the table of its slices. Raises Refusal for what cannot be read right.

    precision: auto, bf16 or fp32 (see fmct.precision).
    """
    network = model.module
    if not isinstance(network, ContrastPaperPredictor) or scan.factor != (1, 1, 1):
        raise ArtefactError(f"{model.origin}: not a model that this reader knows. Export the run again.")
    settings = Preparation.from_dict(network.preparation)
    prepared = prepare(Volume(scan.voxels, scan.affine), template_of(network), settings)
    p = slice_probabilities(network, prepared.slices[prepared.inside], device=model.device, precision=precision)
    logit = scan_logit(scan_probability(p, network.aggregate))
    inside = int(prepared.inside.sum())
    notes = []
    if inside < len(prepared.inside):
        notes.append(f"{inside} of {len(prepared.inside)} slices lie inside the scan; the others were left out")
    return Reading(
        logits=torch.tensor([logit], dtype=torch.float64),
        tables={TABLE: slice_rows(prepared, p)},
        notes=notes,
        windows=len(prepared.inside),
        looked_at=inside,
    )


def slice_probabilities(
    network: torch.nn.Module,
    slices: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> np.ndarray:
    """Return (S,) float64 probabilities of (S, H, W) slices, a few at a time, of a slice network or a predictor."""
    device = torch.device(device)
    dtype, found = compute_dtype(precision, device), []
    slice_network = network.network if isinstance(network, ContrastPaperPredictor) else network
    with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        for first in range(0, len(slices), SLICES_AT_ONCE):
            part = torch.from_numpy(np.array(slices[first : first + SLICES_AT_ONCE])).to(device)
            found.append(slice_network(part).double().sigmoid().cpu().numpy())
    return np.concatenate(found)


def slice_rows(prepared: PreparedScan, probabilities: np.ndarray) -> list[dict[str, float | int]]:
    """Return a row for each slice inside the scan: number in the profile, height in the scan's world, probability."""
    numbers = np.flatnonzero(prepared.inside)
    return [
        {"slice": int(number), "z_mm": round(float(prepared.z_mm[number]), 3), "probability": float(p)}
        for number, p in zip(numbers, probabilities, strict=True)
    ]


def template_of(network: ContrastPaperPredictor) -> Template:
    """Return the template that a model carries."""
    facts = network.template_facts
    voxels = network.get_buffer("template").cpu().numpy()
    return Template(str(facts["name"]), str(facts["sha256"]), voxels, np.array(facts["affine"], dtype=np.float64))
