"""The examples run, and so does every block of Python in the README and in docs/."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks() -> list[object]:
    return [
        pytest.param(match.group(1), id=f"{page.name}:{page.read_text()[: match.start()].count(chr(10)) + 2}")
        for page in PAGES
        for match in BLOCK.finditer(page.read_text())
    ]


def run(program: str, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_runs(example: Path, tmp_path: Path) -> None:
    run(example.read_text(), tmp_path)


@pytest.mark.parametrize("code", blocks())
def test_a_block_of_the_documentation_runs(code: str, tmp_path: Path) -> None:
    run(code if "await" not in code or "anyio.run" in code else wrapped(code), tmp_path)


def wrapped(code: str) -> str:
    """A block that awaits at its top level runs inside a function, in a runtime called ``rt``."""
    body = "".join(f"        {line}\n" for line in code.splitlines())
    return (
        "import anyio\nimport dgents\n\n\nasync def main():\n    async with dgents.Runtime() as rt:\n"
        f"{body}\n\nanyio.run(main)\n"
    )
