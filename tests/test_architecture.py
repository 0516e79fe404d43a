"""The rules that a machine can check: who imports whom, sizes, names, owners, and what may be committed."""

import ast
import difflib
import graphlib
import subprocess
from collections.abc import Collection, Iterator
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted((ROOT / "fmct").rglob("*.py"))
RECIPES = sorted([*(ROOT / "pretrain").glob("*.py"), *(ROOT / "finetune").glob("*.py")])
SOURCES = [*LIBRARY, *RECIPES]

# A room may import the rooms in its set. Ground (the modules right below fmct/) is open to all of them.
MAY_IMPORT = {
    "io": set(),
    "store": {"io"},
    "metrics": set(),
    "registration": set(),
    "data": {"store", "io", "registration"},
    "phantoms": {"data", "registration"},
    "datasets": {"io", "store", "data"},
    "models": set(),
    "losses": set(),
    "train": set(),
    "ssl": {"data", "store", "models", "losses", "train"},
    "tasks": {"data", "store", "models", "losses", "train"},
    "publish": {"io", "store", "data", "models", "train", "ssl", "tasks"},
    "inference": {"io", "store", "data", "models", "tasks", "publish"},
    "inspection": {"io", "store", "data", "models", "train", "publish", "inference"},
    "probes": {"io", "store", "data", "models", "publish", "inference", "metrics"},
    "evaluate": {"io", "store", "data", "models", "publish", "inference", "metrics", "probes"},
    "downstream": {
        *("io", "store", "data", "datasets", "models", "losses", "train", "tasks", "publish"),
        *("inference", "metrics", "probes", "contrast"),
    },
    "experiment": {
        *("io", "store", "data", "models", "train", "tasks", "publish"),
        *("inference", "metrics", "probes", "downstream", "samples", "contrast", "phantoms", "lesions"),
    },
    "contrast": {
        *("io", "store", "data", "registration", "models", "tasks", "publish"),
        *("inference", "metrics", "probes", "evaluate"),
    },
    "lesions": {
        *("io", "store", "data", "models", "losses", "train", "tasks", "publish"),
        *("inference", "metrics", "evaluate", "phantoms", "registration"),
    },
    "samples": {"io", "store"},
    "demo": {
        *("io", "store", "data", "models", "train", "ssl", "publish"),
        *("inference", "metrics", "probes", "evaluate", "samples"),
    },
    "bench": {
        *("io", "store", "data", "models", "losses", "train", "ssl", "tasks", "publish"),
        *("inference", "metrics", "phantoms", "lesions", "contrast"),
    },
}
LEAVES = {"cli", "pretrain", "finetune", "demo", "bench"}
GROUND_OF_GROUND = {"errors", "shapes", "artefacts"}  # what volume, config and distributed may lean on
OWNERS = {
    "omegaconf": {"fmct/config.py"},
    "h5py": {"fmct/store/hdf5.py"},
    "deepspeed": {"fmct/train/deepspeed.py"},
}
SAYS_NOTHING = {"utils", "util", "common", "misc", "helpers", "core", "base"}


def imports(path: Path) -> Iterator[str]:
    """Yield the absolute names of the modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def room(path: Path) -> str:
    """Return the room of a library file: its folder below fmct/, or "" for ground."""
    parts = path.relative_to(ROOT / "fmct").parts
    return parts[0] if len(parts) > 1 else ""


def module_name(path: Path) -> str:
    """Return the dotted name of a library file; a package's `__init__` has the package's name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """Yield what a file imports, with each imported name behind its module: it may be a module itself."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_behind(name: str, modules: Collection[str]) -> str:
    """Return the library module that an imported name is, or is in; "" for another library's."""
    return next((found for found in (name, name.rpartition(".")[0]) if found in modules), "")


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", LIBRARY, ids=label)
def test_imports_point_one_way(path: Path) -> None:
    here = room(path)
    if here == "cli" or (path.name in {"__init__.py", "__main__.py"} and here == ""):
        return
    for name in imports(path):
        if not name.startswith("fmct.") and name != "fmct":
            assert name.split(".")[0] not in {"pretrain", "finetune"}, f"{label(path)} imports a recipe: {name}"
            continue
        there = name.split(".")[1] if "." in name else ""
        is_room = there != "" and (ROOT / "fmct" / there).is_dir()
        if there in LEAVES and there != here:
            raise AssertionError(f"{label(path)} imports {name}, a leaf")
        if here == "":
            assert not is_room, f"ground {label(path)} imports {name}"
        elif is_room and there != here:
            assert there in MAY_IMPORT[here], f"{label(path)} may not import {name}"


def test_modules_form_no_circle() -> None:
    """Imports inside functions count too: a circle that is hidden there is still one for the reader."""
    names = {module_name(path): path for path in LIBRARY}
    graph = {name: {module_behind(near, names) for near in imported(path)} - {name, ""} for name, path in names.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize("path", RECIPES, ids=label)
def test_recipes_import_no_other_recipe(path: Path) -> None:
    assert not [n for n in imports(path) if n.split(".")[0] in {"pretrain", "finetune"}]
    assert len(path.read_text().splitlines()) <= 120, f"{label(path)}: a recipe has at most 120 lines"


@pytest.mark.parametrize("path", sorted((ROOT / "fmct" / "cli").glob("*.py")), ids=label)
def test_a_verb_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 80, f"{label(path)}: a verb has at most 80 lines; the rest is library"


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_modules_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert path.stem not in SAYS_NOTHING
    assert text.count("\n") <= 400, f"{label(path)} has {text.count(chr(10))} lines; split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{label(path)}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_public_names_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{label(path)}:{node.lineno} {node.name} has no docstring"


def test_heavy_dependencies_have_one_owner() -> None:
    for path in SOURCES:
        for name in imports(path):
            owners = OWNERS.get(name.split(".")[0])
            assert owners is None or label(path) in owners, f"{label(path)} imports {name}; its owner is {owners}"
            if name.split(".")[0] == "pydicom":
                assert label(path).startswith("fmct/io/dicom"), f"{label(path)} imports pydicom"


def test_configs_stop_at_the_builders() -> None:
    """No class or function below the builders takes a parameter called cfg, and none reads an untyped config."""
    for path in LIBRARY:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert "cfg" not in [a.arg for a in node.args.args], f"{label(path)}:{node.lineno} takes a cfg"


def written(path: Path) -> list[str]:
    """Return a module's lines but for blank ones and imports, which any two short modules share."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith(("import ", "from "))]


def test_recipes_are_not_copies() -> None:
    for a, b in combinations([p for p in RECIPES if p.name != "__init__.py"], 2):
        ratio = difflib.SequenceMatcher(None, *(written(path) for path in (a, b))).ratio()
        assert ratio < 0.5, f"{label(a)} and {label(b)} share {ratio:.0%} of their lines"


def test_tests_mirror_the_library() -> None:
    """Every room of the library has a room of tests."""
    rooms = {room(p) for p in LIBRARY} - {"", "samples"}
    missing = sorted(r for r in rooms if not list((ROOT / "tests" / r).glob("test_*.py")))
    assert not missing, f"no tests/{missing}"


def test_nothing_of_one_machine_is_committed() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not files:  # an sdist or an exported tree has no index to look at
        files = [label(p) for p in SOURCES]
    sizes = [(ROOT / f).stat().st_size for f in files if (ROOT / f).exists()]
    assert sum(sizes) < 25e6, f"{sum(sizes) / 1e6:.1f} MB are tracked"
    assert not [f for f in files if Path(f).suffix in {".pt", ".pth", ".ckpt", ".pkl", ".safetensors", ".h5"}]
    assert not [f for f in files if Path(f).name in {"uv.lock", "poetry.lock", "pdm.lock", "package-lock.json"}]
    unfinished = ["TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error"]
    for f in files:
        path = ROOT / f
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".sh"} and path.exists():
            text = path.read_text(encoding="utf-8")
            assert "/wo" + "rk/" not in text, f"{f} holds a path of one machine"
            assert not [mark for mark in unfinished if path.suffix == ".py" and mark in text], f"{f} is unfinished"
