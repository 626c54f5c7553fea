"""What is shipped: a wheel, also one built from the sdist, has every package under ``dgents`` and nothing beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("runtime", "backends", "supervisors", "benchmarks")


def build(source: Path, target: Path, kind: str) -> Path:
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr + done.stdout
    (made,) = target.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel that was built from the sdist."""
    folder = tmp_path_factory.mktemp("build")
    checkout = folder / "checkout"
    shutil.copytree(
        ROOT,
        checkout,
        symlinks=True,
        ignore=shutil.ignore_patterns(".venv", ".git", ".*_cache", "__pycache__", ".hyp*"),
    )
    sdist = build(checkout, folder / "sdist", "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    with zipfile.ZipFile(build(unpacked, folder / "wheel", "wheel")) as archive:
        return set(archive.namelist())


def test_a_wheel_built_from_the_sdist_has_every_package(wheel: set[str]) -> None:
    for package in PACKAGES:
        missing = {f"dgents/{package}/{path.name}" for path in (ROOT / package).glob("*.py")} - wheel
        assert not missing


def test_the_wheel_has_its_types(wheel: set[str]) -> None:
    assert "dgents/py.typed" in wheel


def test_the_wheel_puts_nothing_beside_the_package(wheel: set[str]) -> None:
    assert {name.split("/")[0] for name in wheel if ".dist-info/" not in name} == {"dgents"}
