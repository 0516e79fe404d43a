"""Checkpoints of other projects: read without running code in them, prefixes removed, checked name by name."""

import pickle
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fmct.errors import WeightsError

WRAPPERS = ("module.", "backbone.", "_orig_mod.")
_SHOWN = 4


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the dictionary in a .pth, .pt or .safetensors file, on the CPU. Raises WeightsError.

    A pickle is read with `weights_only`: tensors and plain containers come out, nothing in it is run.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file. Expected a checkpoint (.pth, .pt or .safetensors).") from None
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path}: holds Python objects beside tensors, or is no checkpoint at all; it was not opened, since that "
            "could run code. Where it came from, save its state dict alone: torch.save(model.state_dict(), FILE)."
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{path}: not a sound checkpoint ({first[:120]}). Download or copy it again.") from None
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{path}: expected a dictionary of tensors, found {type(content).__name__}. Save a state dict."
        )
    return {str(name): value for name, value in content.items()}


def is_state_dict(tree: Mapping[str, Any]) -> bool:
    """Return whether a dictionary holds tensors and nothing else."""
    return bool(tree) and all(isinstance(value, Tensor) for value in tree.values())


def stripped(tensors: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Return tensors under their names without any leading wrappers' prefixes (module., backbone., _orig_mod.).

    Raises WeightsError when a value is no tensor, or two names become the same.
    """
    result: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise WeightsError(f"{where}: {name} is {type(value).__name__}, not a tensor. Expected a state dict.")
        bare = name
        while bare.startswith(WRAPPERS):
            bare = bare.split(".", 1)[1]
        if bare in result:
            raise WeightsError(
                f"{where}: two tensors are called {bare} once prefixes are removed (one is {name}): the file holds two "
                "models. Save the one that is meant."
            )
        result[bare] = value
    return result


def without_heads(tensors: Mapping[str, Tensor], heads: Collection[str]) -> tuple[dict[str, Tensor], int]:
    """Return the tensors outside the named pretraining heads, and how many were left out."""
    kept = {name: value for name, value in tensors.items() if name.split(".")[0] not in heads}
    return kept, len(tensors) - len(kept)


def block_names(names: Iterable[str], where: str) -> int:
    """Return how many blocks the names `blocks.N.…` count. Raises WeightsError when there are none or a gap."""
    numbers = {int(parts[1]) for parts in (n.split(".") for n in names) if parts[0] == "blocks" and parts[1].isdigit()}
    if not numbers or numbers != set(range(len(numbers))):
        found = ", ".join(map(str, sorted(numbers))) or "none"
        raise WeightsError(f"{where}: expected blocks 0, 1, 2 …, found {found}: not a whole vision transformer.")
    return len(numbers)


def take_by_name(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], where: str, *, hint: str
) -> dict[str, Tensor]:
    """Return {own name: tensor} of {their name: own name}, in fp32. Every name must be there and none be left over.

    Raises WeightsError that names what is missing and what is unexpected; `hint` ends its text.
    """
    missing = [name for name in names if name not in tensors]
    unexpected = [name for name in tensors if name not in names]
    if missing or unexpected:
        parts = [f"{len(names)} tensors expected, {len(tensors)} found"]
        for label, wrong in (("missing", missing), ("unexpected", unexpected)):
            if wrong:
                parts.append(f"{label}: {', '.join(wrong[:_SHOWN])}{' …' if len(wrong) > _SHOWN else ''}")
        raise WeightsError(f"{where}: {'; '.join(parts)}. Nothing was loaded. {hint}")
    result = {}
    for theirs, own in names.items():
        value = tensors[theirs]
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{where}: {theirs} holds values that are not finite real numbers. Copy the file again.")
        result[own] = value.detach().float()
    return result


def shape_of(tensors: Mapping[str, Tensor], name: str, dimensions: int, where: str) -> tuple[int, ...]:
    """Return a tensor's shape. Raises WeightsError when it is absent or has another number of dimensions."""
    if name not in tensors or tensors[name].ndim != dimensions:
        found = f"shape {tuple(tensors[name].shape)}" if name in tensors else "nothing of that name"
        first = ", ".join(list(tensors)[:_SHOWN])
        raise WeightsError(
            f"{where}: expected {name} with {dimensions} dimensions, found {found} (the file begins with {first}). "
            "Is it another project's checkpoint?"
        )
    return tuple(tensors[name].shape)


def cube_root(count: int, what: str, where: str) -> int:
    """Return the side of a cube of `count` tokens. Raises WeightsError when there is none."""
    side = round(count ** (1 / 3))
    if side**3 != count:
        raise WeightsError(f"{where}: {what} has {count} positions, which fill no cube.")
    return side


def fill(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load weights under the model's own names, all of them. Raises WeightsError at the first shape that differs."""
    expected = model.state_dict()
    for name, value in weights.items():
        if name not in expected or expected[name].shape != value.shape:
            wanted = tuple(expected[name].shape) if name in expected else "nothing"
            raise WeightsError(
                f"{where}: {name} would be {wanted}, the file has {tuple(value.shape)}: its tensors do not belong to "
                "one model."
            )
    left = sorted(set(expected) - set(weights))
    if left:
        raise WeightsError(f"{where}: nothing in the file for {', '.join(left[:_SHOWN])}.")
    model.load_state_dict(dict(weights), strict=True)
