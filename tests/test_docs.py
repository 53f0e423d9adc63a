"""What the documents promise is there."""

import re
from dataclasses import fields
from pathlib import Path

import typer.main

from rsslcli.app import app
from rsslcli.core.config import Config
from rsslcli.core.presets import PRESETS
from rsslcli.core.tasks.registry import TASKS

ROOT = Path(__file__).parents[1]


def test_every_promise_names_a_test_that_exists() -> None:
    """In docs/reliability.md each row of a table ends in tests; `::name` is of the file named before."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) > 30
    path = ""
    for row in rows:
        found = re.findall(r"`([\w/.]*)(?:::(\w+))?`", row.split(" | ", 1)[1])
        assert found, row
        for file, name in found:
            path = file or path
            source = (ROOT / "tests" / path).read_text(encoding="utf-8")
            assert not name or f"def {name}(" in source, f"{path}::{name}"


def test_links_between_the_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            assert "://" in target or (document.parent / target).exists(), f"{document}: {target}"


def test_the_command_line_page_names_every_setting_without_an_option() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    table = text.partition("These settings have no option.")[2].partition("\n\n```")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    told = {
        name: value
        for names, values, _ in rows
        for name, value in zip(re.findall(r"`(\w+)`", names), values.split(", "), strict=True)
    }
    options = {
        parameter.name
        for name in ("train-single", "train-automl")
        for parameter in typer.main.get_command(app).commands[name].params
    }
    settings = {field.name: field.default for field in fields(Config) if field.name not in options}
    assert told.keys() == settings.keys()
    for name, value in told.items():
        assert name == "task_options" or float(settings[name]) == float({"true": "1"}.get(value, value)), name


def test_the_command_line_page_names_every_command_and_option_and_no_other() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    group = typer.main.get_command(app)
    commands: dict[str, set[str]] = {
        name: {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        for name, command in group.commands.items()
    }
    options = {
        name: {option for option in known if option.startswith("--")} for name, known in commands.items()
    }
    own = {option for parameter in group.params for option in parameter.opts}
    described: set[str] = set()
    for heading, body in re.findall(r"^## (.*`rssl .*)\n((?:(?!^## ).*\n)*)", text, re.MULTILINE):
        names = re.findall(r"`rssl ([\w-]+)`", heading)
        cells = " ".join(re.findall(r"^\| (`--.*?) \|", body, re.MULTILINE))
        expected = set().union(*(options[name] for name in names))
        assert set(re.findall(r"`(--[\w-]+)`", cells)) == expected, heading
        described |= set(names)
    assert described == options.keys()
    assert own < set(re.findall(r"--[\w-]+", text))
    known = own.union(*options.values(), {"--help", "--nproc-per-node"})
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) <= known
    for name in (*PRESETS, *TASKS):
        assert f"`{name}`" in text
