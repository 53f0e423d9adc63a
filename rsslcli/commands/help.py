"""Help pages in sections, with examples, and suggestions for misspelled commands."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from rsslcli.commands.console import out
from rsslcli.core.errors import unknown

#: Explanations stand beside names of options and commands up to this length, below longer ones.
_COLUMN = 26
#: A command with more options than this shows them in sections.
_PAGE = 16

Rows = list[tuple[str, str]]


class Command(TyperCommand):
    """A command whose help shows many options by their `rich_help_panel`, without the cost of rich.

    Lines of its docstring that begin with `rssl`, `torchrun` or `#` are its examples, and come last.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page."""
        self.format_usage(ctx, formatter)
        _write_help(self.help or "", _option_sections(self.get_params(ctx), ctx), formatter)


class Group(TyperGroup):
    """The same for the program itself, whose commands are shown by their `rich_help_panel`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page."""
        sections: dict[str, Rows] = {}
        for name, command in self.commands.items():
            summary = (command.help or "").partition("\n")[0].rstrip(".")
            panel = getattr(command, "rich_help_panel", None)
            sections.setdefault(panel or "Commands", []).append((name, summary))
        self.format_usage(ctx, formatter)
        options = _option_sections(self.get_params(ctx), ctx)
        _write_help(self.help or "", sections | options, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first argument names; an unknown one is an error that suggests the nearest."""
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            begun = [command for command in self.commands if command.startswith(name)]
            raise unknown("command", name, begun or self.commands)
        return super().resolve_command(ctx, args)


def _option_sections(parameters: Sequence[Any], ctx: Any) -> dict[str, Rows]:
    """The rows of a help page by section: arguments first, options without a section last."""
    sections: dict[str, Rows] = {"Arguments": []}
    for parameter in parameters:
        panel = getattr(parameter, "rich_help_panel", None) if len(parameters) > _PAGE else None
        heading = "Arguments" if parameter.param_type_name == "argument" else panel or "Options"
        record = parameter.get_help_record(ctx)
        if record is not None:  # it is not hidden
            sections.setdefault(heading, []).append(record)
    sections["Options"] = sections.pop("Options", [])
    return {heading: rows for heading, rows in sections.items() if rows}


def _write_help(text: str, sections: dict[str, Rows], formatter: Any) -> None:
    """Write a help page in characters that stdout can show: typer writes UTF-8 whatever its encoding is."""

    def write(part: str) -> None:
        formatter.write(out.as_shown(part))

    lines = text.splitlines()
    examples = [line for line in lines if line.startswith(("rssl ", "torchrun ", "# "))]
    rest = "\n".join(line for line in lines if line not in examples).strip()
    for paragraph in rest.split("\n\n"):
        write(f"\n{_fold(paragraph, formatter.width, '  ')}\n")
    # One column for all sections.
    width = min(_COLUMN, max(len(name) for rows in sections.values() for name, _ in rows))
    column = " " * (2 + width + 2)
    for heading, rows in sections.items():
        write(_heading(heading))
        for name, explanation in rows:
            gap = column[2 + len(name) :] if len(name) <= width else "\n" + column
            explained = _fold(explanation, formatter.width, column).lstrip()
            write(f"  {typer.style(name, fg='cyan')}{gap}{explained}\n")
    if examples:
        write(_heading("Examples"))
        for example in examples:
            write(f"{_example(example, formatter.width)}\n")


def _heading(text: str) -> str:
    return "\n" + typer.style(f"{text}:", bold=True) + "\n"


def _example(line: str, width: int) -> str:
    """An example or a comment on one, folded; a folded command can still be pasted."""
    if line.startswith("# "):
        return typer.style(_fold(line, width, "  ", "  # "), dim=True)
    # An option keeps its value beside it; two columns are for the backslash, which says that more follows.
    joined = re.sub(r"( --\S+) (?!-)", "\\1\xa0", line)
    return _fold(joined, width - 2, "  ", "      ").replace("\xa0", " ").replace("\n", " \\\n")


def _fold(text: str, width: int, first: str, following: str | None = None) -> str:
    """A paragraph, indented and folded between words, never within one."""
    return textwrap.fill(
        text,
        width,
        initial_indent=first,
        subsequent_indent=first if following is None else following,
        break_long_words=False,
        break_on_hyphens=False,
    )
