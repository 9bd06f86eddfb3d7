"""The wheel, installed in a fresh environment that knows nothing of the repository."""

import json
import os
import shutil
import site
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from test_public_api import NAMES

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "runs/reference/symphony_mujoco-s3/Pendulum-v1-control/mini-seed0"
CUBE = ROOT / "runs/reference/qstar_cube3_train/cube3-12-qtm/gpu-seed0"
# Those that are no Python; without them a command breaks only when it is called.
DATA = (
    "py.typed",
    "reports/minatar_published.csv",
    "views/cube3.html",
    "views/report.css",
    "weights/cube3_12.safetensors",
)

pytestmark = [pytest.mark.ci, pytest.mark.slow, pytest.mark.timeout(300)]
Command = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what the repository holds, by the builder that this environment has."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "classicrl", source / "classicrl", ignore=shutil.ignore_patterns("__pycache__")
    )
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--wheel-dir", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("classicrl-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs a program of a new environment, in a directory of its own."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run([*pip, "--disable-pip-version-check"], check=True)
    # Torch and the rest come from this environment, found after the new one's own packages. Its
    # editable installs do not come along: a .pth file named in another is not read.
    own = next((folder / "venv").glob("lib/python*/site-packages"))
    here = [path for path in site.getsitepackages() if Path(path).is_dir()]
    (own / "borrowed.pth").write_text("\n".join(here) + "\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    work = folder / "work"
    work.mkdir()

    def run(program: str, *arguments: object) -> str:
        done = subprocess.run(
            [str(python.with_name(program)), *map(str, arguments)],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def test_the_wheel_holds_data_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"classicrl/{name}" for name in DATA} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"classicrl"}


def test_every_module_is_imported_from_the_wheel(installed: Command) -> None:
    program = (
        "import importlib, classicrl\n"
        f"for name in {NAMES!r}:\n"
        "    importlib.import_module(name)\n"
        "print(classicrl.__file__)\n"
    )
    where = installed("python", "-c", program).strip()
    assert "/venv/lib/" in where
    assert not Path(where).is_relative_to(ROOT)


def test_doctor(installed: Command) -> None:
    assert "classicrl" in installed("classicrl", "doctor")


def test_the_shipped_network_solves_a_cube(installed: Command, tmp_path: Path) -> None:
    page = tmp_path / "cube.html"
    out = installed("classicrl", "solve", "--scramble", "R U", "--html", page)
    assert "U' R'" in out
    assert page.stat().st_size > 5_000


def test_a_model_directory_is_played_reported_and_exported(
    installed: Command, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    out = installed("classicrl", "evaluate", model, "--episodes", 2, "--threads", 1)
    assert out.startswith("symphony_mujoco-s3 on Pendulum-v1 (control)")
    installed("classicrl", "report", model)
    assert (model / "report.html").stat().st_size > 5_000
    installed("classicrl", "export", model, "--out", tmp_path / "handed-on")
    assert json.loads((tmp_path / "handed-on" / "config.json").read_text())["config"]["seed"] == 0


def test_a_trained_network_for_the_cube_is_found(installed: Command, tmp_path: Path) -> None:
    shutil.copytree(CUBE, tmp_path / "cube")
    out = installed("classicrl", "solve", "--network", tmp_path / "cube", "--scramble", "R U")
    assert "U' R'" in out
