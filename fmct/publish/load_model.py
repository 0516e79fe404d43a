"""A published downstream model, back in memory: network, preprocessing, targets and frozen decision."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fmct.artefacts import read_json
from fmct.errors import ArtefactError, ConfigError
from fmct.models.bag import MilHead
from fmct.models.encoder import VisionTransformer
from fmct.preprocess import FORMAT as PREPROCESS_FORMAT
from fmct.preprocess import Preprocessing
from fmct.publish import golden, layout
from fmct.publish.decision import Decision
from fmct.publish.load import SelfTest, verified_folder
from fmct.publish.model_golden import model_numbers
from fmct.publish.task_record import TaskRecord
from fmct.publish.weights import load_into, read_weights
from fmct.publish.window_output import WindowOutput, window_output
from fmct.shapes import Triple
from fmct.tasks.kinds import kind_named

MODEL_FORMAT = ("fmct-model", "1.0")
NAMES_OF_OTHERS = {"fmct-encoder": "an encoder (fmct embed and fmct probe take it; fmct finetune makes a model of it)"}


class PublishedModel:
    """A network that predicts, with all that prediction needs. Always in evaluation mode, fp32, without gradients.

    record: kind, targets, preprocessing. decision: None where no threshold was frozen. facts: the card's training
    facts. origin: the folder, or `repo@commit`.
    """

    def __init__(
        self,
        module: nn.Module,
        record: TaskRecord,
        *,
        decision: Decision | None = None,
        facts: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        origin: str = "",
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self.record = record
        self.decision = decision
        self.facts = dict(facts or {})
        self.folder = folder
        self.origin = origin

    @property
    def targets(self) -> tuple[str, ...]:
        """The name of each output."""
        return self.record.targets

    @property
    def preprocessing(self) -> Preprocessing:
        """How a series becomes windows."""
        return self.record.preprocessing

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.module.parameters()).device

    @cached_property
    def segments(self) -> bool:
        """Whether the network gives logits per voxel: found by running it on one small window of zeros."""
        size = self._smallest_window()
        return self(torch.zeros((1, self.record.in_channels, *size))).segmentation is not None

    def channels_last(self) -> "PublishedModel":
        """Lay the convolutions' weights out channels last, in place, and return the model.

        A decoder at full resolution then runs about a third faster; the last bits of its logits are others.
        """
        for part in self.module.modules():
            if isinstance(part, (nn.Conv3d, nn.ConvTranspose3d)):
                part.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        return self

    @property
    def fingerprint(self) -> str | None:
        """One SHA-256 for the whole folder, None for a model that was not loaded from one."""
        return layout.fingerprint(self.folder) if self.folder else None

    def __call__(self, x: torch.Tensor, *others: Any, spacing: torch.Tensor | None = None) -> WindowOutput:
        """Return the logits of windows x (B, C, D, H, W); spacing (B, 3) mm, by default what preprocess.json says.

        Raises TypeError when a second phase is offered: the model predicts from one series alone.
        """
        if others:
            raise TypeError(
                "this model predicts from one series alone: its folder holds no parameter of a second phase (CTPA, "
                "PET), so none can be used. Call model(x) or model(x, spacing=…)."
            )
        placed = self._default_spacing(len(x)) if spacing is None else spacing
        with torch.no_grad():
            output = self.module(x.to(self.device), spacing=placed.to(self.device))
        return window_output(output, self.token_grid(x.shape[2:]))

    def pooled(
        self, logits: torch.Tensor, features: torch.Tensor | None, foreground: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return a series' (T,) logits of its windows' (M, T) logits and (M, E') features, as `record.pool` says.

        foreground: (M,) share of each window that is none of the air, by which the pool of that name weights it.
        Raises ArtefactError when `bag` meets a network without a MIL head, or shares that are needed are absent.
        """
        if self.record.pool == "max":
            return logits.amax(dim=0)
        if self.record.pool == "mean":
            return logits.mean(dim=0)
        if self.record.pool == "foreground":
            return _weighted_mean(logits, foreground)
        head = getattr(self.module, "head", None)
        if not isinstance(head, MilHead) or features is None:
            raise ArtefactError(f"{self.origin}: pool is bag, but the network has no MIL head. Export the run again.")
        with torch.no_grad():
            bags = torch.zeros(len(features), dtype=torch.int64, device=features.device)
            return head(features, bags, 1)[0][0]

    def token_grid(self, size: Any) -> Triple | None:
        """Return the tokens (z, y, x) of the network's encoder over a window of `size` voxels; None without one."""
        for part in self.module.modules():
            if isinstance(part, VisionTransformer):
                z, y, x = (-(-side // patch) for side, patch in zip(size, part.patch_size, strict=True))
                return (z, y, x)
        return None

    def selftest(self) -> SelfTest:
        """Check every file against SHA256SUMS, and logits and preprocessing against golden.json.

        Raises ArtefactError when a file differs, or a number by more than 1e-4 of the largest of its kind.
        """
        if self.folder is None:
            raise ArtefactError("this model was not loaded from a model folder, so it has no golden numbers.")
        layout.verify(self.folder)
        expected = read_json(self.folder / layout.GOLDEN, *golden.FORMAT)
        found = model_numbers(self, self.record, self.device)
        differences = {
            f"{part}.{name}": value
            for part in ("model", "preprocessing")
            for name, value in golden.differences(expected[part], found[part]).items()
        }
        equal = all(expected[part]["sha256"] == found[part]["sha256"] for part in ("model", "preprocessing"))
        result = SelfTest(differences, equal)
        if not result.worst <= golden.TOLERANCE:
            name = max(differences, key=lambda key: differences[key])
            raise ArtefactError(
                f"{self.origin}: self-test failed: {name} differs by {result.worst:.2g} of its size from what the "
                f"exporting machine found (limit {golden.TOLERANCE:g}). This is not what was published: "
                "compare the versions in the model card with those installed."
            )
        return result

    def _smallest_window(self) -> Triple:
        """Return one patch, or of a network without patches the whole window."""
        for part in self.module.modules():
            if isinstance(part, VisionTransformer):
                return part.patch_size
        return self.preprocessing.input.size_voxels

    def _default_spacing(self, count: int) -> torch.Tensor:
        return torch.tensor([list(self.record.spacing_mm)] * count, dtype=torch.float32)


def _weighted_mean(logits: torch.Tensor, foreground: torch.Tensor | None) -> torch.Tensor:
    """Return the (T,) mean of (M, T) logits by (M,) shares; the plain mean where nothing is foreground."""
    if foreground is None:
        raise ArtefactError("pool is foreground, and the windows' shares are not known: this model takes whole tiles.")
    weight = foreground.to(logits) if float(foreground.sum()) > 0 else torch.ones_like(logits[:, 0])
    return (logits * (weight / weight.sum())[:, None]).sum(dim=0)


def load_model(
    path_or_hub_id: str | Path, *, revision: str | None = None, device: torch.device | str | None = None
) -> PublishedModel:
    """Return the model of a folder that `fmct export` wrote from a run of `fmct finetune`, or of a hub id.

    Every file is verified by its checksum; no pickle is opened and nothing that the folder names is imported. device:
    where the weights go, by default a GPU if there is one. Raises ArtefactError, WeightsError.
    """
    folder, origin = verified_folder(path_or_hub_id, revision=revision)
    tree = _description(folder)
    preprocessing = Preprocessing.from_dict(
        read_json(folder / layout.PREPROCESS, *PREPROCESS_FORMAT), str(folder / layout.PREPROCESS)
    )
    where = str(folder / layout.CONFIG)
    record = TaskRecord.from_dict(tree.get("task", {}), preprocessing, where)
    decision = Decision.from_dict(tree["decision"], where) if tree.get("decision") else None
    kind = kind_named(record.kind, where)
    try:
        module = kind.build_predictor(record.architecture, in_channels=record.in_channels, spacing_mm=record.spacing_mm)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{where}: describes no network that this fmct can build ({error}).") from None
    load_into(module, read_weights(folder / layout.WEIGHTS), where=str(folder / layout.WEIGHTS))
    device = device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu")
    return PublishedModel(
        module.to(device), record, decision=decision, facts=tree.get("training"), folder=folder, origin=origin
    )


def _description(folder: Path) -> dict[str, Any]:
    """Return config.json of a model folder. Raises ArtefactError, naming an encoder folder as what it is."""
    try:
        return read_json(folder / layout.CONFIG, *MODEL_FORMAT)
    except ArtefactError as error:
        for name, says in NAMES_OF_OTHERS.items():
            if f"found '{name}'" in str(error):
                raise ArtefactError(
                    f"{folder}: holds {says}; expected a model folder, which `fmct export` writes from a run of "
                    "`fmct finetune`."
                ) from None
        raise
