"""What the documentation says must be what the code does: drawn pages are up to date, links lead somewhere, every command and failure is named."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def _generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["SETTINGS.md", "TELEMETRY.md"])
def test_a_drawn_page_is_up_to_date(name):
    assert (ROOT / "docs" / name).read_text("utf-8") == _generator().PAGES[name](), "run: make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_command_is_in_the_readme_or_in_the_documentation():
    import click
    from typer.main import get_command

    from tokenweir.cli import app

    text = "\n".join(page.read_text("utf-8") for page in PAGES)

    def names(command, path):
        if isinstance(command, click.Group) or hasattr(command, "commands"):
            for name, child in command.commands.items():
                yield from names(child, [*path, name])
        else:
            yield " ".join(path)

    commands = sorted(names(get_command(app), []))
    assert len(commands) > 10
    missing = [command for command in commands if command.split()[0] not in text]
    assert missing == []


def test_every_failure_stands_in_the_drawing_of_them_all():
    from tokenweir import errors

    drawing = errors.__doc__
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.TokenweirError):
            assert name in drawing, f"{name} is missing in the docstring of errors.py"


def test_every_failure_says_a_sentence_and_whose_fault_it_is():
    from tokenweir import errors

    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.TokenweirError):
            error = kind()
            assert error.message.endswith(".")
            assert error.fault in {"caller", "upstream", "own", "operator"}


def test_no_lock_names_an_address():
    for lock in (ROOT / "requirements").glob("*.txt"):
        assert not re.search(r"https?://|index-url|find-links", lock.read_text("utf-8")), lock.name
