"""What README.md and docs/ tell is true: tables come from records, code runs, files and targets exist."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks" / "tables.py").is_file(),
    reason="README.md and benchmarks/ lie in the clone only",
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(pattern: re.Pattern[str]) -> list:
    return [
        pytest.param(match[1], id=f"{page.name}:{page.read_text()[: match.start()].count(chr(10)) + 2}")
        for page in PAGES
        if page.is_file()
        for match in pattern.finditer(page.read_text())
    ]


def run_tables(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "tables.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_tables_are_what_the_committed_records_give():
    done = run_tables()
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_figure_changed_by_hand_is_found(tmp_path):
    page = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text()
    page.write_text(text.replace("<!-- table: demo -->\n", "<!-- table: demo -->\nTen times faster.\n"))
    assert page.read_text() != text
    assert run_tables(page).returncode == 1
    assert run_tables("--write", page).returncode == 0
    assert page.read_text() == text


def test_an_unclosed_or_unknown_table_is_an_error(tmp_path):
    page = tmp_path / "page.md"
    for text, message in (
        ("<!-- table: demo -->\n", "closed"),
        ("<!-- table: nothing -->\n<!-- end -->\n", "nothing"),
    ):
        page.write_text(text)
        done = run_tables("--write", page)
        assert done.returncode != 0
        assert message in done.stderr


@pytest.mark.parametrize("code", blocks(PYTHON_BLOCK))
def test_python_blocks_run(code):
    if ">>>" not in code:
        exec(compile(code, "block", "exec"), {})
        return
    test = doctest.DocTestParser().get_doctest(code, {}, "block", None, None)
    failures: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=failures.append)
    assert not failures, "".join(failures)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("commands", blocks(SHELL_BLOCK))
def test_commands_name_targets_modules_and_scripts_that_exist(commands):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", commands, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"Makefile has no target {target}"
    for script in re.findall(r"^python (\S+\.py)", commands, re.MULTILINE):
        assert (ROOT / script).is_file()
    for module in re.findall(r"^python -m (\S+)", commands, re.MULTILINE):
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        options = re.findall(rf"^python -m {re.escape(module)}.*", commands, re.MULTILINE)
        for option in re.findall(r"(--[\w-]+)", " ".join(options)):
            assert option in done.stdout, f"{module} has no option {option}"
