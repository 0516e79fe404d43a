"""A published encoder, back in memory: weights, preprocessing and golden numbers from one folder or hub id."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch

from fmct.artefacts import read_json
from fmct.config import build
from fmct.errors import ArtefactError, ConfigError, DataError, Refusal
from fmct.models.encoder import EncoderConfig, EncoderOutput, VisionTransformer, build_encoder
from fmct.preprocess import FORMAT as PREPROCESS_FORMAT
from fmct.preprocess import Preprocessing, Tiles
from fmct.publish import golden, layout
from fmct.publish.weights import load_into, read_weights
from fmct.volume import Volume

TOKENS_PER_BATCH = 8192  # a ViT-B in fp32 then needs under 2 GB for activations


@dataclass(frozen=True)
class Embedding:
    """Features of one series: vector (2E,) float32, and per tile: tiles (T, 2E) float32 of [cls, mean patch],
    start_mm (T, 3) RAS mm of the first voxel's centre, foreground (T,) fraction, spacing_mm (3,) of the input.
    """

    vector: np.ndarray
    tiles: np.ndarray
    start_mm: np.ndarray
    foreground: np.ndarray
    spacing_mm: np.ndarray


@dataclass(frozen=True)
class SelfTest:
    """Largest relative difference per golden quantity, and whether every feature is bit-equal to the exporter's."""

    differences: dict[str, float]
    bit_equal: bool

    @property
    def worst(self) -> float:
        """The largest relative difference of all."""
        return max(self.differences.values())


class PublishedEncoder:
    """A VisionTransformer with the preprocessing it was trained under. `facts` are the card's training facts.

    `origin` says where it came from: the folder, or `repo@commit` for a hub id. Always in evaluation mode, fp32,
    without gradients.
    """

    def __init__(
        self,
        model: VisionTransformer,
        config: EncoderConfig,
        preprocessing: Preprocessing,
        *,
        facts: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        origin: str = "",
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.config = config
        self.preprocessing = preprocessing
        self.facts = dict(facts or {})
        self.folder = folder
        self.origin = origin

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    @property
    def num_features(self) -> int:
        """The embedding width E; `embed` returns 2E numbers."""
        return self.model.num_features

    def preprocess(self, source: str | Path | Volume) -> torch.Tensor:
        """Return a series as (T, C, D, H, W) float32 on the CPU, from a file, a DICOM folder or a Volume.

        Raises a DataError for an unreadable series or one of another modality.
        """
        return self.preprocessing(self._volume(source))

    def __call__(self, x: torch.Tensor, spacing: torch.Tensor | None = None) -> EncoderOutput:
        """Return cls (B, E), registers (B, R, E), patches (B, N, E) and their grid of x (B, C, D, H, W).

        spacing: (B, 3) mm (z, y, x); by default what preprocess.json says.
        """
        placed = self.default_spacing(len(x)) if spacing is None else spacing
        with torch.no_grad():
            return self.model(x.to(self.device), spacing=placed.to(self.device))

    def default_spacing(self, count: int) -> torch.Tensor:
        """Return preprocess.json's spacing as (count, 3) mm. Raises DataError where it depends on the series."""
        spacing = self.preprocessing.input.spacing_mm
        if spacing is None:
            raise DataError(
                "this encoder resizes each series to one size, so its spacing depends on the series: pass spacing=…, "
                "(B, 3) in mm, as encoder.preprocessing.tiles(volume).spacing_mm gives it, or use encoder.embed."
            )
        return torch.tensor([spacing] * count, dtype=torch.float32)

    @overload
    def embed(self, source: str | Path | Volume, return_tiles: Literal[False] = False) -> np.ndarray:
        """Return the vector."""
        ...

    @overload
    def embed(self, source: str | Path | Volume, return_tiles: Literal[True]) -> Embedding:
        """Return the vector and the tiles."""
        ...

    def embed(self, source: str | Path | Volume, return_tiles: bool = False) -> np.ndarray | Embedding:
        """Return (2E,) float32 features of a series: the mean over its tiles of [cls, mean patch], weighted by
        foreground where preprocess.json says so; with return_tiles an Embedding, the tiles' own features beside it.

        Tiles are made and encoded a few at a time, so a whole body needs no more memory than a nodule.
        """
        embedding = self.embed_tiles(
            self.preprocessing.batches(
                self.preprocessing.scan(self._volume(source)), batch_size=self.batch_size(), device=self.device
            )
        )
        return embedding if return_tiles else embedding.vector

    def embed_tiles(self, batches: Iterable[Tiles]) -> Embedding:
        """Return the features of one series that comes as batches of its tiles."""
        features, starts, foreground, spacing = [], [], [], np.zeros(3)
        for tiles in batches:
            output = self(tiles.tensor, spacing=tiles.spacing_mm)
            features.append(torch.cat([output.cls, output.patches.mean(dim=1)], dim=1).float().cpu())
            starts.append(tiles.start_mm)
            foreground.append(tiles.foreground)
            spacing = tiles.spacing_mm[0].numpy()
        stacked, share = torch.cat(features), torch.cat(foreground)
        weight = share if self.preprocessing.input.pool == "foreground" and share.sum() > 0 else torch.ones(len(share))
        vector = (stacked.double() * weight.double()[:, None]).sum(dim=0) / weight.double().sum()
        return Embedding(vector.float().numpy(), stacked.numpy(), np.concatenate(starts), share.numpy(), spacing)

    def batch_size(self) -> int:
        """Return how many tiles are encoded at once, so that a batch has about TOKENS_PER_BATCH tokens."""
        return max(1, TOKENS_PER_BATCH // self.model.num_patches(self.preprocessing.input.size_voxels))

    def selftest(self) -> SelfTest:
        """Check every file against SHA256SUMS, and features and preprocessing against golden.json.

        Raises ArtefactError when a file differs, or a number by more than 1e-4 of the largest of its kind.
        """
        if self.folder is None:
            raise ArtefactError("this encoder was not loaded from an encoder folder, so it has no golden numbers.")
        layout.verify(self.folder)
        expected = read_json(self.folder / layout.GOLDEN, *golden.FORMAT)
        found = measure(self.model, self.preprocessing)
        differences = {
            f"{part}.{name}": value
            for part in ("encoder", "preprocessing")
            for name, value in golden.differences(expected[part], found[part]).items()
        }
        result = SelfTest(
            differences, all(expected[part]["sha256"] == found[part]["sha256"] for part in ("encoder", "preprocessing"))
        )
        if not result.worst <= golden.TOLERANCE:
            name = max(differences, key=lambda key: differences[key])
            raise ArtefactError(
                f"{self.origin}: self-test failed: {name} differs by {result.worst:.2g} of its size from what the "
                f"exporting machine found (limit {golden.TOLERANCE:g}). This is not what was published: "
                "compare the versions in the model card with those installed."
            )
        return result

    def _volume(self, source: str | Path | Volume) -> Volume:
        if isinstance(source, Volume):
            return source
        from fmct.io import read_volume

        try:
            return read_volume(source, modality=self.preprocessing.modality)
        except Refusal as refused:  # a reader names no file, as its text may travel; this one came from the caller
            raise Refusal(refused.code, f"{source}: {refused.reason}", refused.numbers) from None


def measure(model: VisionTransformer, preprocessing: Preprocessing) -> dict[str, Any]:
    """Return golden.json's payload: the recipe of the input, and the numbers found here."""
    size = golden.golden_size(model.patch_size)
    spacing = preprocessing.input.spacing_mm or (1.0, 1.0, 1.0)
    channels = preprocessing.channels
    return {
        "tolerance": golden.TOLERANCE,
        "input": {"formula": golden.INPUT, "shape": [1, channels, *size], "spacing_mm": list(spacing)},
        "volume": golden.VOLUME,
        "encoder": golden.encoder_numbers(model, channels, size, spacing),
        "preprocessing": golden.preprocessing_numbers(preprocessing),
    }


def load_encoder(
    path_or_hub_id: str | Path, *, revision: str | None = None, device: torch.device | str | None = None
) -> PublishedEncoder:
    """Return the encoder of a folder, or of a hub id such as `name/encoder`, every file verified by its checksum.

    A folder that exists comes before a hub id. revision: a branch, tag or commit of the hub repository; the commit
    that was used is in `.origin`. device: where the weights go, by default a GPU if there is one.
    Raises ArtefactError: not whole, altered, of another version, not found, or not reachable.
    """
    folder, origin = verified_folder(path_or_hub_id, revision=revision)
    return _assemble(folder, origin, device)


def verified_folder(path_or_hub_id: str | Path, *, revision: str | None = None) -> tuple[Path, str]:
    """Return (folder, origin) of an exported folder or a hub id, after every file was matched with its checksum.

    origin: the folder, or `repo@commit`. Raises ArtefactError.
    """
    from fmct.publish.hub import download, is_hub_id

    folder, again = Path(path_or_hub_id), "Export or download it again."
    origin = str(folder)
    if folder.exists():
        if revision is not None:
            raise ArtefactError(f"{folder}: is a folder here, which has no revision {revision!r}. Leave revision out.")
    elif is_hub_id(str(path_or_hub_id)):
        folder, origin = download(str(path_or_hub_id), revision=revision)
        again = f"Delete {folder.parent.parent} and load it again to download it anew."
    else:
        raise ArtefactError(
            f"{folder}: no such folder, and not a hub id (owner/name). Expected a folder that `fmct export` wrote."
        )
    if not folder.is_dir():
        raise ArtefactError(f"{folder}: is a file; expected the folder that `fmct export` wrote around it.")
    layout.verify(folder, again=again)
    return folder, origin


def _assemble(folder: Path, origin: str, device: torch.device | str | None) -> PublishedEncoder:
    tree = read_json(folder / layout.CONFIG, *layout.CONFIG_FORMAT)
    preprocessing = Preprocessing.from_dict(
        read_json(folder / layout.PREPROCESS, *PREPROCESS_FORMAT), str(folder / layout.PREPROCESS)
    )
    try:
        config = build(EncoderConfig, tree["encoder"], str(folder / layout.CONFIG))
        channels = int(tree["in_channels"])
        model = build_encoder(config, channels, tree["spacing_mm"])
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise ArtefactError(
            f"{folder / layout.CONFIG}: describes no encoder that this fmct can build ({error})."
        ) from None
    if channels != preprocessing.channels:
        raise ArtefactError(
            f"{folder}: the encoder takes {channels} channels, and preprocess.json makes {preprocessing.channels}. "
            "The files are of different encoders: export or download the folder again."
        )
    load_into(model, read_weights(folder / layout.WEIGHTS), where=str(folder / layout.WEIGHTS))
    device = device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu")
    facts = tree.get("training", {})
    return PublishedEncoder(model.to(device), config, preprocessing, facts=facts, folder=folder, origin=origin)
