"""A DICOM series becomes a Volume: headers first, geometry and rescale checked, then pixels slice by slice."""

from typing import Any

import numpy as np

from fmct.io.affine import SPACING_RANGE_MM
from fmct.io.assemble import check_size, checked_stack, place
from fmct.io.candidate import Candidate
from fmct.io.dicom_facts import technical_facts
from fmct.io.dicom_header import SliceHeader, read_headers
from fmct.io.dicom_pet import suv_factor
from fmct.io.dicom_pixels import PixelFile
from fmct.io.dicom_series import check_header, same_grid
from fmct.io.plausibility import ValueCounts, check_hu, check_image, fill_padding, to_hu
from fmct.io.policy import ReadPolicy
from fmct.io.refusals import refusal
from fmct.io.stack import Stack, slice_order
from fmct.volume import UNITS, Volume

_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
_HU_TYPES = ("", "HU", "US")
_MAX_SLOPE, _MIN_SLOPE, _MAX_INTERCEPT = 100.0, 1e-3, 32768.0
Slice = tuple[int, SliceHeader]  # the number of the file within the candidate, and the header


def read_dicom(candidate: Candidate, policy: ReadPolicy) -> Volume:
    """Return the canonical Volume of a DICOM series. Raises Refusal with what was measured."""
    slices = _drop_copies(_slices(candidate, policy), policy)
    first = slices[0][1]
    check_size((len(slices), first.rows, first.columns), policy)
    slices, stack = _ordered(slices)
    mend = checked_stack(stack, policy)
    if first.modality == "CT":
        for _, header in slices:
            _check_rescale(header)
        voxels, noted = _read_hu(candidate, slices, policy)
        units = UNITS["CT"]
    else:
        factor, units = suv_factor(candidate.paths[0]) if first.modality == "PT" else (1.0, UNITS[first.modality])
        voxels, noted = _read_values(candidate, slices, factor)
    facts = technical_facts(candidate.paths[slices[len(slices) // 2][0]]) | noted
    return place(voxels, stack, mend, modality=first.modality, units=units, facts=facts)


def _slices(candidate: Candidate, policy: ReadPolicy) -> list[Slice]:
    """Return the headers of the candidate's slices. Raises Refusal when a file does not read, or not as before."""
    chosen = set(candidate.frames)
    slices: list[Slice] = []
    for number, path in enumerate(candidate.paths):
        for header in read_headers(path):
            if not chosen or (number, header.frame) in chosen:
                check_header(header, policy)
                slices.append((number, header))
    if not slices or not all(same_grid(header, slices[0][1]) for _, header in slices):
        raise refusal("unreadable", "the files of the series are not those that were found: they have changed since")
    return slices


def _drop_copies(slices: list[Slice], policy: ReadPolicy) -> list[Slice]:
    """Return the slices without copies of one instance (same UID, frame and position), where the policy allows."""
    seen: set[tuple[Any, ...]] = set()
    kept: list[Slice] = []
    for item in slices:
        identity = (item[1].instance_uid, item[1].frame, item[1].position)
        if identity not in seen or not item[1].instance_uid:
            kept.append(item)
        seen.add(identity)
    copies = len(slices) - len(kept)
    if copies and policy.duplicates == "refuse":
        reason = f"{copies} of {len(slices)} files are copies of another (same instance UID); duplicates=drop takes one"
        positions = [header.position[2] for _, header in slices if header.position and len(header.position) == 3]
        repeated = sorted({z for z in positions if positions.count(z) > 1})[:20]
        raise refusal("duplicate-slices", reason, slices=len(slices), copies=copies, repeated_at_mm=repeated)
    return kept


def _ordered(slices: list[Slice]) -> tuple[list[Slice], Stack]:
    """Return the slices in order along their normal, and their stack in RAS mm. Raises Refusal."""
    first = slices[0][1]
    orientation, spacing = first.orientation, first.spacing
    missing = [name for name, value in (("orientation", orientation), ("pixel spacing", spacing)) if value is None]
    unplaced = sum(header.position is None for _, header in slices)
    if missing or unplaced:
        reason = f"not stated: {', '.join([*missing, *([f'{unplaced} positions'] if unplaced else [])])}"
        raise refusal("no-geometry", reason, slices=len(slices), without_position=unplaced)
    assert orientation is not None
    assert spacing is not None
    y_step, x_step = _plane_steps(orientation, spacing)
    stated = [header.position or () for _, header in slices]
    if any(len(position) != 3 for position in stated):
        raise refusal("bad-geometry", "a position does not have three coordinates")
    positions = np.array(stated, dtype=np.float64) * _LPS_TO_RAS
    absurd = int((~(np.isfinite(positions) & (np.abs(positions) < 1e5))).any(axis=1).sum())
    if absurd:
        raise refusal("bad-geometry", f"{absurd} slice positions are not finite or absurd", slices=absurd)
    order = slice_order(positions, y_step, x_step)
    return [slices[i] for i in order], Stack(positions[order], y_step, x_step)


def _plane_steps(orientation: tuple[float, ...], spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the RAS vectors from one row to the next and from one column to the next. Raises Refusal."""
    cosines, pitch = np.array(orientation, dtype=np.float64), np.array(spacing, dtype=np.float64)
    if len(cosines) != 6 or not np.isfinite(cosines).all():
        raise refusal("bad-geometry", "the orientation is not six finite numbers")
    if len(pitch) != 2 or not ((pitch >= SPACING_RANGE_MM[0]) & (pitch <= SPACING_RANGE_MM[1])).all():
        raise refusal("bad-geometry", f"the pixel spacing {pitch.tolist()} mm is absurd", spacing_mm=pitch)
    across, down = cosines[:3], cosines[3:]
    lengths = np.array([np.linalg.norm(across), np.linalg.norm(down)])
    if np.abs(lengths - 1).max() > 0.01 or abs(float(across @ down)) > 0.01:
        reason = "row and column directions are not orthogonal unit vectors"
        raise refusal("bad-geometry", reason, lengths=lengths, cosine=float(across @ down))
    # Headers round the cosines; the pair is made exactly orthonormal so that the grid is.
    across = across / lengths[0]
    down = down - (down @ across) * across
    down = down / np.linalg.norm(down)
    return down * _LPS_TO_RAS * pitch[0], across * _LPS_TO_RAS * pitch[1]


def _check_rescale(header: SliceHeader) -> None:
    """Raise Refusal unless slope and intercept of a CT slice are stated, finite, plausible and lead to HU."""
    slope, intercept = header.slope, header.intercept
    if slope is None or intercept is None:
        name = "RescaleSlope" if slope is None else "RescaleIntercept"
        raise refusal("bad-rescale", f"{name} is missing", slope=slope, intercept=intercept)
    # NaN fails every comparison and so is refused here too.
    if not (_MIN_SLOPE <= slope <= _MAX_SLOPE and abs(intercept) <= _MAX_INTERCEPT):
        reason = f"slope {slope:g} and intercept {intercept:g}: expected {_MIN_SLOPE:g}…{_MAX_SLOPE:g} and ±32768"
        raise refusal("bad-rescale", reason, slope=str(slope), intercept=str(intercept))
    if header.rescale_type not in _HU_TYPES:
        raise refusal("bad-rescale", "RescaleType says that the values are not HU", slope=slope, intercept=intercept)


def _read_hu(candidate: Candidate, slices: list[Slice], policy: ReadPolicy) -> tuple[np.ndarray, dict[str, Any]]:
    """Return int16 HU (K, H, W), padding as air, and what was noted. Raises Refusal."""
    voxels = np.empty((len(slices), slices[0][1].rows, slices[0][1].columns), dtype=np.int16)
    pixels = _Pixels(candidate)
    counts, padding, error = ValueCounts(), 0, 0.0
    for plane, (number, header) in zip(voxels, slices, strict=True):
        slope, intercept = float(header.slope or 1.0), float(header.intercept or 0.0)
        low, high, rounding = to_hu(_rescaled(pixels.frame(number, header), slope, intercept), plane)
        error = max(error, rounding)
        padding += fill_padding(plane, _padding_hu(header, slope, intercept))
        counts.add(plane, low, high)
    check_hu(counts, policy.hu, modality_named=True)
    facts: dict[str, Any] = {"padding_voxels": padding, "lossy_compression": pixels.lossy}
    if error > 1e-3:
        facts["rounding_error_hu"] = round(error, 4)
    return voxels, facts


def _padding_hu(header: SliceHeader, slope: float, intercept: float) -> tuple[float, float] | None:
    """Return the (lowest, highest) padding value in HU, None when the header names none."""
    if header.padding is None:
        return None
    low, high = (value * slope + intercept for value in header.padding)
    return (low, high)


def _read_values(candidate: Candidate, slices: list[Slice], factor: float) -> tuple[np.ndarray, dict[str, Any]]:
    """Return float32 values (K, H, W) of a PT or MR, and what was noted. Raises Refusal."""
    voxels = np.empty((len(slices), slices[0][1].rows, slices[0][1].columns), dtype=np.float32)
    pixels = _Pixels(candidate)
    for plane, (number, header) in zip(voxels, slices, strict=True):
        slope = 1.0 if header.slope is None else header.slope
        intercept = 0.0 if header.intercept is None else header.intercept
        if not (np.isfinite([slope, intercept]).all() and 1e-12 <= abs(slope) <= 1e9):
            raise refusal("bad-rescale", f"slope {slope:g} and intercept {intercept:g} are absurd")
        plane[...] = (pixels.frame(number, header).astype(np.float64) * slope + intercept) * factor
    check_image(voxels, slices[0][1].modality)
    return voxels, {"lossy_compression": pixels.lossy}


def _rescaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Return stored × slope + intercept: int32 where both are whole, else float64."""
    if slope.is_integer() and intercept.is_integer() and stored.dtype.itemsize <= 2:
        if slope == 1.0 and intercept == 0.0:
            return stored
        return stored.astype(np.int32) * int(slope) + int(intercept)
    return stored.astype(np.float64) * slope + intercept


class _Pixels:
    """The pixel files of a candidate; the last one stays open, because frames of one file follow each other."""

    def __init__(self, candidate: Candidate) -> None:
        self._paths = candidate.paths
        self._open: tuple[int, PixelFile] | None = None
        self.lossy = False

    def frame(self, number: int, header: SliceHeader) -> np.ndarray:
        """Return the stored values (H, W) of a slice. Raises Refusal, also when the file changed its size."""
        if self._open is None or self._open[0] != number:
            self._open = (number, PixelFile(self._paths[number]))
            self.lossy = self.lossy or self._open[1].lossy
        values = self._open[1].frame(header.frame)
        if values.shape != (header.rows, header.columns):
            raise refusal("unreadable", f"pixels of {values.shape}, the header says {(header.rows, header.columns)}")
        return values
