"""Scans in: DICOM, NIfTI, NRRD and MHA become a Volume, or are refused with a stable code."""

from fmct.io.candidate import Candidate
from fmct.io.discover import discover
from fmct.io.policy import MODALITIES, HuPlausibility, ReadPolicy
from fmct.io.read import read_candidate, read_volume
from fmct.io.refusals import REFUSAL_CODES, Rejected

__all__ = [
    "MODALITIES",
    "REFUSAL_CODES",
    "Candidate",
    "HuPlausibility",
    "ReadPolicy",
    "Rejected",
    "discover",
    "read_candidate",
    "read_volume",
]
