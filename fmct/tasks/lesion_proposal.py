"""Proposal of small lesions: a network that says of every voxel whether it is one, trained to miss none.

L = cross_entropy · CE (weighted voxel by voxel) + dice · (1 − soft Dice), Sundaresan et al. 2023, as meant; see
fmct.losses.lesions for what their code did. A patch without a lesion teaches through the cross-entropy and the Dice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmct.config import build, plain
from fmct.data.lesion_patches import PatchBatch
from fmct.errors import ArtefactError
from fmct.losses.lesions import dice_loss, lesion_weights, weighted_cross_entropy
from fmct.losses.term import Term
from fmct.models.adaptation import EncoderHolder
from fmct.models.lesion_segmenter import LesionNetworkConfig, build_lesion_network
from fmct.models.vision_transformer import VisionTransformer
from fmct.tasks.backbone import NETWORK
from fmct.tasks.supervised import SupervisedTask, weighted
from fmct.train.task import TaskOutput


@dataclass(frozen=True)
class VoxelObjective:
    """cross_entropy, dice: weights. ce_weighting: `voxel`, or `legacy_global`, what the published code computed.
    lesion_factor, sigma_voxels: of the voxel weights 1 + factor · Gaussian(mask).
    """

    cross_entropy: float = 1.0
    dice: float = 1.0
    ce_weighting: str = "voxel"
    lesion_factor: float = 10.0
    sigma_voxels: float = 1.2


class LesionProposal(SupervisedTask):
    """Train a detector of voxels on patches."""

    def __init__(self, network: EncoderHolder, objective: VoxelObjective | None = None) -> None:
        super().__init__(network)
        self.objective = objective or VoxelObjective()

    def forward(self, batch: PatchBatch, values: Mapping[str, float]) -> TaskOutput:
        """Return the loss of a batch; `values` play no part."""
        del values
        terms = voxel_terms(self.network(batch.volumes, batch.spacing).voxels, batch.mask, self.objective)
        weights = {"cross_entropy": self.objective.cross_entropy, "dice": self.objective.dice}
        return weighted(terms, weights, samples=batch.entries)


def voxel_terms(logits: Tensor, mask: Tensor, objective: VoxelObjective) -> dict[str, Term]:
    """Return the terms `cross_entropy` and `dice` of voxel logits (B, 1, D, H, W)."""
    weights = lesion_weights(mask, factor=objective.lesion_factor, sigma_voxels=objective.sigma_voxels)
    count = torch.tensor(float(len(logits)), device=logits.device)
    entropy = weighted_cross_entropy(logits, mask, weights, weighting=objective.ce_weighting)
    return {"cross_entropy": Term(entropy, count), "dice": Term(dice_loss(logits, mask), count)}


def describe_network(config: LesionNetworkConfig, *, voxels: bool, patch: bool) -> dict[str, Any]:
    """Return the architecture that `build_network` builds from."""
    return {"network": plain(config), "voxels": voxels, "patch": patch}


def build_network(architecture: Mapping[str, Any], *, encoder: VisionTransformer | None = None) -> EncoderHolder:
    """Return the network of an architecture, on `encoder` where one is given. Raises ArtefactError."""
    if "network" not in architecture:
        raise ArtefactError("architecture: it describes no network for lesions.")
    config = build(LesionNetworkConfig, architecture["network"], "the architecture's network")
    return build_lesion_network(
        config, voxels=bool(architecture["voxels"]), patch=bool(architecture["patch"]), encoder=encoder
    )


def load_trained(network: EncoderHolder, parameters: Mapping[str, Tensor]) -> EncoderHolder:
    """Load a run's parameters (names as in the task) into its network, which is returned in evaluation mode.

    Raises ArtefactError when they do not fit.
    """
    state = {name.removeprefix(NETWORK): value for name, value in parameters.items() if name.startswith(NETWORK)}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ArtefactError(
            f"the run's parameters do not fit the network that its configuration names: {first}"
        ) from None
    return network.eval()
