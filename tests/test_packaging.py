"""Set-up: the README's commands are the ones that CI runs, and what is installed is complete."""

from __future__ import annotations

import configparser
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

import segtrain

REPOSITORY = Path(segtrain.__file__).parent.parent
TEST_LINE = 'python3 -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/python -m pytest'
QUICKSTART_LINE = (
    "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/python tools/train.py configs/quickstart.yaml"
)
# Stand-ins for the commands of a virtual environment: they write down how they are called.
RECORDER = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
if [ "$2" = pytest ]; then exit "$PYTEST_EXIT"; fi
"""
MAKER = """
mkdir -p .venv-ci/bin
for name in pip python ruff mypy; do cp "$STAND_IN" .venv-ci/bin/$name; done
"""


def _bash_lines() -> list[str]:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    blocks: list[str] = re.findall(r"^```bash\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE)
    return "".join(blocks).splitlines()


def test_the_readme_holds_the_two_commands() -> None:
    assert _bash_lines().count(QUICKSTART_LINE) == 1
    assert _bash_lines().count(TEST_LINE) == 1
    assert (REPOSITORY / "README.md").read_text(encoding="utf-8").count('pip install -e ".[test]"') == 1


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A stand-in for a checkout: the CI script, the README, and commands that only record how they are called."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".venv-ci").mkdir()
    (tmp_path / ".venv-ci" / "stale").touch()
    for name in (".ci/run", "README.md"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    for name, text in (("bin/python3", RECORDER + MAKER), ("recorder", RECORDER)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def _run_ci(checkout: Path, *, pytest_exit: int) -> tuple[int, list[str]]:
    environment = {
        "PATH": f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "LOG": str(checkout / "log"),
        "STAND_IN": str(checkout / "recorder"),
        "PYTEST_EXIT": str(pytest_exit),
    }
    done = subprocess.run(["bash", ".ci/run"], cwd=checkout, env=environment, check=False, timeout=60)
    return done.returncode, (checkout / "log").read_text().splitlines()


def test_ci_runs_the_readmes_test_line_in_an_environment_of_its_own_then_the_linters(checkout: Path) -> None:
    code, log = _run_ci(checkout, pytest_exit=0)
    assert code == 0
    assert log == [
        "python3 -m venv .venv-ci",
        "pip install -e .[test]",
        "python -m pytest",
        "ruff check .",
        "ruff format --check .",
        "mypy ",
    ]
    assert not (checkout / ".venv-ci" / "stale").exists()


def test_ci_fails_where_the_tests_fail(checkout: Path) -> None:
    code, log = _run_ci(checkout, pytest_exit=1)
    assert code == 1
    assert log[-1] == "python -m pytest"


def test_ci_refuses_a_readme_without_the_line(checkout: Path) -> None:
    (checkout / "README.md").write_text("# nothing\n")
    done = subprocess.run(["bash", ".ci/run"], cwd=checkout, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "README.md must hold exactly one line" in done.stderr


def test_the_ci_script_may_be_executed() -> None:
    assert (REPOSITORY / ".ci" / "run").stat().st_mode & stat.S_IXUSR


def test_every_file_of_the_package_that_is_no_code_is_installed_with_it() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    patterns = setup["options.package_data"]["segtrain"].replace(" ", "").split(",")
    package = REPOSITORY / "segtrain"
    installed = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and path.parent.name != "__pycache__"}
    others = {path for path in files if path.suffix != ".py"}
    assert others <= installed


def test_folders_of_the_package_are_packages() -> None:
    folders = {path.parent for path in (REPOSITORY / "segtrain").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
