"""Configuration: YAML files and `key=value` overrides become one typed, frozen dataclass. The only user of omegaconf.

Files are plain YAML: no interpolation, no object construction, no environment variables. Later files and then the
command line win. An unknown key is an error that names the nearest known one.
"""

import dataclasses
import difflib
import functools
import importlib
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from fmct.artefacts import check_stamp, stamped, write_text
from fmct.errors import ArtefactError, ConfigError

T = TypeVar("T")
MISSING: Any = "???"  # omegaconf's mark of a value that the user has to give
_ROOT = Path(__file__).resolve().parent.parent
_PACKAGE = Path(__file__).resolve().parent


def top_level(name: str) -> Path:
    """Return the folder `configs`, `pretrain` or `finetune`: the clone's when there is one, else the installed one."""
    clone = _ROOT / name
    return clone if (_ROOT / "pyproject.toml").is_file() and clone.is_dir() else _PACKAGE / name


def find_config(name: str) -> Path:
    """Return the path of a config: a file as given, or a shipped one such as `pretrain/demo`. Raises ConfigError."""
    for path in (Path(name), Path(f"{name}.yaml")):
        if path.is_file():
            return path
    relative = name.removeprefix("configs/").removesuffix(".yaml")
    shipped = top_level("configs") / f"{relative}.yaml"
    if shipped.is_file():
        return shipped
    known = sorted(str(p.relative_to(top_level("configs"))) for p in top_level("configs").rglob("*.yaml"))
    close = difflib.get_close_matches(f"{relative}.yaml", known, n=1, cutoff=0.4)
    hint = f" Did you mean configs/{close[0]}?" if close else f" Shipped configs: {', '.join(known)}."
    raise ConfigError(f"{name}: no such config file.{hint}")


def read_tree(paths: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the merged plain tree of YAML files and `key.sub=value` overrides. Raises ConfigError."""
    merged: Any = OmegaConf.create({})
    for name in paths:
        path = find_config(name)
        merged = OmegaConf.merge(merged, OmegaConf.create(_read_yaml(path)))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key or key.strip() != key:
            raise ConfigError(
                f"{override!r}: expected key=value, such as batch_size=8 or views.global_size=[96,96,96]."
            )
        _refuse_interpolation(text, f"the override {override!r}")
        try:
            value = yaml.safe_load(text) if text else ""
            OmegaConf.update(merged, key, value, merge=False)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(f"{override!r}: not a usable value ({_first_line(error)}).") from None
    tree = OmegaConf.to_container(merged, resolve=False)
    assert isinstance(tree, dict)
    return typing.cast(dict[str, Any], tree)


def build(schema: type[T], tree: Mapping[str, Any], where: str = "the configuration") -> T:
    """Return `tree` as an instance of the dataclass `schema`, every value checked. Raises ConfigError."""
    _check_keys(schema, tree, "")
    try:
        typed = OmegaConf.merge(_structured(schema), OmegaConf.create(dict(tree)))
        assert isinstance(typed, DictConfig)
        missing = sorted(OmegaConf.missing_keys(typed))
        if missing:
            raise ConfigError(
                f"{where}: no value for {', '.join(missing)}. Add {missing[0]}=… to the command or the file."
            )
        return typing.cast(T, OmegaConf.to_object(typed))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{where}: {_first_line(error)}.") from None
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", "") or ""
        if "is not a ListConfig" in str(error):
            raise ConfigError(f"{where}: {key}: expected a list. On the command line: '{key}=[VALUE]'.") from None
        if " to Dict[" in str(error):
            found = f"{where}: {key}: expected keys with values. On the command line: '{key}={{KEY: VALUE}}'."
            raise ConfigError(found) from None
        raise ConfigError(f"{where}: {key}: {_first_line(error)}.") from None


@functools.cache
def _structured(schema: type) -> DictConfig:
    """Return the schema with its defaults, which takes omegaconf longest to make. It is merged into copies alone."""
    return OmegaConf.structured(schema)


def to_yaml(config: Any, *, name: str, version: str, extra: Mapping[str, Any] | None = None) -> str:
    """Return a config dataclass as stamped YAML; `extra` keys come first."""
    tree = {**dict(extra or {}), **plain(config)}
    return yaml.safe_dump(stamped(name, version, tree), sort_keys=False, allow_unicode=True)


def plain(config: Any) -> dict[str, Any]:
    """Return a config dataclass as plain dicts, lists and scalars."""
    return typing.cast(dict[str, Any], _plain(config))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def save(path: Path, config: Any, *, name: str, version: str, extra: Mapping[str, Any] | None = None) -> None:
    """Write a config dataclass as stamped YAML, atomically."""
    write_text(path, to_yaml(config, name=name, version=version, extra=extra))


def read_stamped(path: Path, name: str, version: str) -> dict[str, Any]:
    """Return the tree of a stamped YAML file that fmct wrote. Raises ArtefactError."""
    if not path.is_file():
        raise ArtefactError(f"{path}: no such file; expected a {name} file there.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path}: not readable as YAML ({_first_line(error)}).") from None
    return check_stamp(content, name, version, str(path))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every leaf of a plain tree; lists are leaves."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def import_recipe(name: str) -> types.ModuleType:
    """Return the recipe that a config names, such as `pretrain.dino`: the clone's, the installed, or a user's own.

    Raises ConfigError when nothing of that name can be imported.
    """
    top = name.split(".")[0]
    if top in ("pretrain", "finetune"):
        if top_level(top).parent == _PACKAGE:
            name = f"fmct.{name}"
        elif str(_ROOT) not in sys.path:
            sys.path.insert(0, str(_ROOT))
    elif "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        raise ConfigError(
            f"recipe: {name}: no such module. Expected an importable one, such as pretrain.dino."
        ) from None
    for needed in ("Config", "main"):
        if not hasattr(module, needed):
            raise ConfigError(
                f"recipe: {name} has no {needed}; a recipe is a module with a dataclass Config and main(config)."
            )
    return module


def read_recipe(paths: Sequence[str], overrides: Sequence[str], *, default: str = "") -> tuple[types.ModuleType, Any]:
    """Return (recipe, its configuration) of config files and key=value; `default` is the recipe where none is named.

    Raises ConfigError.
    """
    tree = read_tree(paths, overrides)
    name = tree.setdefault("recipe", default)
    if not name:
        raise ConfigError(
            f"{paths[0]}: names no recipe. If it is made to be laid over another configuration, as its header then "
            "says, name that one first. Otherwise add a line such as `recipe: finetune.segment` to it."
        )
    module = import_recipe(name)
    return module, build(module.Config, tree)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({_first_line(error)}).") from None
    _refuse_interpolation(text, str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(content).__name__}.")
    content.pop("format", None)
    return content


def _refuse_interpolation(text: str, where: str) -> None:
    if "${" in text:
        raise ConfigError(f"{where}: holds '${{', but fmct's configs know no interpolation. Write the value itself.")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def _nested(annotation: Any) -> tuple[type | None, type | None]:
    """Return (dataclass, container) behind an annotation such as `X`, `X | None`, `list[X]` or `dict[str, X]`."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if dataclasses.is_dataclass(candidate) and isinstance(candidate, type):
            container = typing.get_origin(annotation)
            return candidate, container if container in (list, dict) else None
        if typing.get_origin(candidate) in (list, dict) and candidate is not annotation:
            return _nested(candidate)
    return None, None


def _check_keys(schema: Any, tree: Mapping[str, Any], prefix: str) -> None:
    """Refuse unknown keys with the nearest known one, before any value is looked at."""
    hints = typing.get_type_hints(schema)
    for key, value in tree.items():
        if key not in hints:
            close = difflib.get_close_matches(str(key), list(hints), n=1, cutoff=0.5)
            hint = f" Did you mean {prefix}{close[0]}?" if close else f" Known keys here: {', '.join(hints)}."
            raise ConfigError(f"unknown key {prefix}{key}.{hint}")
        inner, container = _nested(hints[key])
        if inner is None:
            continue
        items: dict[str, Any] = {f"{prefix}{key}.": value}
        if container is list and isinstance(value, list):
            items = {f"{prefix}{key}[{position}].": item for position, item in enumerate(value)}
        elif container is dict and isinstance(value, Mapping):
            items = {f"{prefix}{key}.{name}.": item for name, item in value.items()}
        for place, item in items.items():
            if isinstance(item, Mapping):
                _check_keys(inner, item, place)
