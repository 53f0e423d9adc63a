"""How the command line explains itself: help in sections, with examples, and the nearest command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from rsslcli.core.errors import unknown

#: Names of options and commands up to this long have their explanation beside them, longer ones below.
_COLUMN = 26
#: More options than these are shown in sections.
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
        """The command that the first argument names; near misses are told."""
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            begun = [command for command in self.commands if command.startswith(name)]
            raise unknown("command", name, begun or self.commands)
        return super().resolve_command(ctx, args)


def _option_sections(parameters: Sequence[Any], ctx: Any) -> dict[str, Rows]:
    """The rows of a help page by section: arguments first, options that belong nowhere else last."""
    sections: dict[str, Rows] = {"Arguments": []}
    others: Rows = []
    for parameter in parameters:
        panel = getattr(parameter, "rich_help_panel", None) if len(parameters) > _PAGE else None
        record = parameter.get_help_record(ctx)
        if record is None:  # a hidden one
            continue
        if parameter.param_type_name == "argument":
            sections["Arguments"].append(record)
        elif panel is None:
            others.append(record)
        else:
            sections.setdefault(panel, []).append(record)
    return {heading: rows for heading, rows in (sections | {"Options": others}).items() if rows}


def _write_help(text: str, sections: dict[str, Rows], formatter: Any) -> None:
    lines = text.splitlines()
    examples = [line for line in lines if line.startswith(("rssl ", "torchrun ", "# "))]
    formatter.write_paragraph()
    with formatter.indentation():
        formatter.write_text("\n".join(line for line in lines if line not in examples).strip())
    names = [name for rows in sections.values() for name, _ in rows]
    width = min(_COLUMN, max(map(len, names)))
    for heading, rows in sections.items():
        with formatter.section(heading):
            # One column for all sections: each would measure its own.
            formatter.write_dl([(name.ljust(width), words) for name, words in rows], col_max=width)
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")
