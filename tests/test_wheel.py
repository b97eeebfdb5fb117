"""The wheel, built from the source archive, installed outside the checkout, does the main job there."""

import os
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What a build reads; the checkout may hold much more, and must not get build folders.
SOURCES = ("jaxprobe", "convert", "flags", "kernels", "pyproject.toml", "README.md")


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """(source archive, wheel); the wheel is built from the former."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source)
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source], folder)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(archives, tmp_path_factory):
    """A new environment with the wheel; of this one it sees the dependencies, but no editable install."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    run([*pip, archives[1]], folder)
    inside = run([python, "-c", "import site; print(site.getsitepackages()[0])"], folder).strip()
    (Path(inside) / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return folder


def run(command, folder) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def packaged() -> set[str]:
    """Every file of the package, symlinked folders included, relative to the checkout."""
    return {
        str((Path(folder) / name).relative_to(ROOT))
        for folder, folders, names in os.walk(ROOT / "jaxprobe", followlinks=True)
        for name in names
        if "__pycache__" not in folder and "egg-info" not in folder
    }


def test_wheel_and_source_archive_hold_the_whole_package(archives):
    source, wheel = archives
    with tarfile.open(source) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert packaged() <= names
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert packaged() <= names
    assert {"jaxprobe/assets/facts.json", "jaxprobe/assets/LICENSE.lre"} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"jaxprobe"}  # no bare `kernels`


def test_the_main_job_runs_from_an_installed_wheel(environment, tmp_path):
    programs = environment / "bin"
    where = run([programs / "python", "-c", "import jaxprobe.kernels as k; print(k.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(environment)
    arguments = ["--layer=1", "--num_texts=2", "--device=cpu", "--compile_cache=off"]
    run([programs / "python", "-m", "jaxprobe.jacobian", *arguments], tmp_path)
    results = tmp_path / "results"
    assert (results / "gradient_amplification_results_all_layers.json").stat().st_size > 0
    assert list((results / "images").glob("*.png"))


def test_every_command_has_its_console_script(environment, tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    modules = {target.partition(":")[0]: script for script, target in project["scripts"].items()}
    commands = {path.stem for path in (ROOT / "jaxprobe").glob("*.py") if "\ndef main(" in path.read_text()}
    assert modules.keys() == {f"jaxprobe.{name}" for name in commands}
    for module, script in modules.items():
        text = run([environment / "bin" / script, "--help"], tmp_path)
        assert text.startswith(f"usage: python -m {module} ")
