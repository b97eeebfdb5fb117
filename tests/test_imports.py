"""The dependency rules of the layout, held on every import statement, lazy ones inside functions included."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "jaxprobe": ROOT / "jaxprobe",
    "jaxprobe.models": ROOT / "jaxprobe" / "models",
    "jaxprobe.report": ROOT / "jaxprobe" / "report",
    **{
        f"jaxprobe.{name}": ROOT / "jaxprobe" / name
        for name in ("jacobians", "matched", "original", "recall", "scoring", "statistics")
    },
    "jaxprobe.convert": ROOT / "convert",
    "jaxprobe.flags": ROOT / "flags",
    "jaxprobe.kernels": ROOT / "kernels",
}
COMMANDS = {f"jaxprobe.{name}" for name in ("delta_pct", "factual_recall", "inspect_model", "jacobian")}
CONFIGS = {"jaxprobe.configs", "jaxprobe.errors"}
OURS = {"jaxprobe"}

# Package -> what its modules may import: of this project by prefix, and of others by top-level name.
MAY_IMPORT = {
    "jaxprobe.kernels": ({"jaxprobe.kernels"}, {"jax", "jaxtyping"}),
    "jaxprobe.convert": (
        CONFIGS | {"jaxprobe.convert"},
        {
            "huggingface_hub",
            "jax",
            "ml_dtypes",
            "numpy",
            "orbax",
            "safetensors",
            "tokenizers",
            "transformers",
        },
    ),
    "jaxprobe.flags": (CONFIGS | {"jaxprobe.flags", "jaxprobe.run_configs"}, {"absl"}),
    "jaxprobe.models": (
        CONFIGS
        | {"jaxprobe.array_typing", "jaxprobe.kernels", "jaxprobe.models", "jaxprobe.sites", "jaxprobe.taps"},
        {"flax", "jax", "jaxtyping", "numpy"},
    ),
    "jaxprobe.statistics": ({"jaxprobe.array_typing", "jaxprobe.statistics"}, {"numpy", "scipy"}),
    "jaxprobe.report": (
        {"jaxprobe.report", "jaxprobe.outputs", "jaxprobe.statistics"},
        {"jinja2", "markupsafe"},
    ),
}
STANDARD_LIBRARY_ONLY = CONFIGS | {"jaxprobe.run_checks", "jaxprobe.run_configs", "jaxprobe.shipped"}
PLOTTING = {"matplotlib"}


def modules() -> dict[str, ast.Module]:
    found = {}
    for package, folder in FOLDERS.items():
        for file in sorted(folder.glob("*.py")):
            name = package if file.stem == "__init__" else f"{package}.{file.stem}"
            found[name] = ast.parse(file.read_text(encoding="utf-8"), str(file))
    return found


MODULES = modules()


def imports(tree: ast.Module) -> set[str]:
    """Every module that the code may import; `from a import b` is a.b where that is a module of ours."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (full & MODULES.keys()) or {node.module}
    return names


def within(name: str, prefixes: set[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def top(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_what_its_folder_may(module):
    package = next((name for name in MAY_IMPORT if within(module, {name})), None)
    used = {name for name in imports(MODULES[module]) if top(name) not in sys.stdlib_module_names}
    ours = {name for name in used if top(name) in OURS}
    if package is not None:
        allowed_ours, allowed_others = MAY_IMPORT[package]
        assert {name for name in ours if not within(name, allowed_ours)} == set()
        assert {top(name) for name in used - ours} <= allowed_others
    if module in STANDARD_LIBRARY_ONLY:
        assert {name for name in used if not within(name, STANDARD_LIBRARY_ONLY)} == set()
    assert not within("kernels", {top(name) for name in used}), "kernels is imported as jaxprobe.kernels"
    assert used.isdisjoint(COMMANDS), "nothing imports a command"
    if not module.endswith("plots") and module != "jaxprobe.figures":
        assert PLOTTING.isdisjoint(map(top, used)), "only plots modules import plotting"
    if package != "jaxprobe.flags":
        assert "absl" not in set(map(top, used)), "only flags modules read FLAGS"


@pytest.mark.parametrize("module", sorted(MODULES.keys() - COMMANDS - {"jaxprobe.cli"}))
def test_only_commands_turn_flags_into_a_config(module):
    names = {node.attr for node in ast.walk(MODULES[module]) if isinstance(node, ast.Attribute)}
    assert within(module, {"jaxprobe.flags"}) or "to_config" not in names


@pytest.mark.parametrize("command", sorted(COMMANDS & MODULES.keys()))
def test_a_command_starts_quickly(command):
    """`--help` must not load JAX: it takes seconds."""
    slow = "jax flax pandas matplotlib jinja2 orbax datasets transformers torch".split()
    code = f"import sys, {command}; print(sorted(set({slow}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_folder_is_packaged():
    """A folder missing from pyproject's list works in an editable install and vanishes from the wheel."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(project["tool"]["setuptools"]["packages"]) == FOLDERS.keys()
    inner = {file.parent for file in (ROOT / "jaxprobe").rglob("*.py") if "assets" not in file.parts}
    links = {ROOT / "jaxprobe" / name for name in ("convert", "flags", "kernels")}
    assert inner - links == {
        folder for folder in FOLDERS.values() if folder.is_relative_to(ROOT / "jaxprobe")
    }
