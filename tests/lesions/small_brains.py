"""Small SYNTHETIC brains in memory, and a detector's configuration that trains in seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fmct.data.cohort import CohortConfig
from fmct.lesions.cleanup import CleanupRules
from fmct.lesions.pipeline import Pipeline
from fmct.lesions.preparation import PreparationConfig
from fmct.lesions.settings import DiscriminateConfig, LesionConfig, PhaseConfig, ProposeConfig
from fmct.lesions.subjects import Source, Subject
from fmct.models.lesion_segmenter import LesionNetworkConfig
from fmct.phantoms.brain_mr import BrainPhantom, brain_phantom
from fmct.train.session import Options, RunConfig

GRID: dict[str, Any] = {"shape": (26, 32, 26), "spacing_mm": (3.6, 3.6, 3.6)}
NETWORK = LesionNetworkConfig(width=4)
THRESHOLD = 0.002  # a head that was hardly trained says no more than its prior


def brain(number: int, **changes: Any) -> BrainPhantom:
    """Return a coarse phantom."""
    return brain_phantom(number, **{**GRID, **changes})


def subject(number: int, split: str, lesions: int = 3) -> Subject:
    """Return a phantom as a subject."""

    def read() -> Source:
        phantom = brain(number, lesions=lesions)
        return Source(phantom.image, phantom.brain, phantom.lesions.voxels)

    return Subject(f"P{number}", f"s{number}", split, str(number), read)


def subjects(*, train: int = 2, test: int = 1, lesions: Callable[[int], int] = lambda number: 3) -> list[Subject]:
    """Return subjects of both splits."""
    every = [(number, "train" if number < train else "test") for number in range(train + test)]
    return [subject(number, split, lesions(number)) for number, split in every]


def phase(steps: int, **changes: Any) -> PhaseConfig:
    """Return a short training."""
    return PhaseConfig(**{"steps": steps, "batch_size": 2, "patch": [8, 8, 8], **changes})


def config(output: Path, steps: int = 2, **changes: Any) -> LesionConfig:
    """Return a detector's configuration."""
    settings: dict[str, Any] = {
        "output": str(output),
        "lesion_sign": "dark",
        "data": CohortConfig(targets=["microbleed"]),
        "prepare": PreparationConfig(symmetry_radii_mm=[3.0]),
        "propose": ProposeConfig(network=NETWORK, training=phase(2 * steps), threshold=THRESHOLD),
        "discriminate": DiscriminateConfig(
            teacher=NETWORK, student=NETWORK, teacher_training=phase(steps), student_training=phase(steps)
        ),
        "clean": CleanupRules(max_volume_mm3=None, min_sphericity=None, max_elongation=None),
        "run": RunConfig(save_every=2, measure_peak=False),
    }
    return LesionConfig(**{**settings, **changes})


def pipeline(config: LesionConfig, chosen: list[Subject]) -> Pipeline:
    """Return the stages of a run."""
    return Pipeline(config, chosen, options=Options(), device=torch.device("cpu"))
