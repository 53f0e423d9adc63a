"""The command line: names the subcommands, and turns every error into one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from rsslcli import __version__
from rsslcli.commands.console import SPEAKS, spell_options
from rsslcli.commands.eval_c import eval_c
from rsslcli.commands.export import export
from rsslcli.commands.help import Command, Group
from rsslcli.commands.prepare_data import prepare_data
from rsslcli.commands.report import report
from rsslcli.commands.reproduce import reproduce
from rsslcli.commands.train_automl import train_automl
from rsslcli.commands.train_single import train_single
from rsslcli.commands.visualize_tasks import visualize_tasks
from rsslcli.core.errors import InterruptedTrainingError, LostRankError, RsslError, UserError, nearest, quoted

#: The commands in the order of a first session.
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Data": (prepare_data, visualize_tasks),
    "Training": (train_single, train_automl),
    "Results": (eval_c, report, export),
    "The whole study": (reproduce,),
}

app = typer.Typer(
    name="rssl",
    cls=Group,
    help="""Train image classifiers that hold up on corrupted images.

Self-supervision tasks are trained beside the classifier, and their weights tune themselves.
`rssl COMMAND --help` explains a command's options.

# a first session, in five minutes on two CPU cores
rssl train-automl --preset quick --output runs/first
rssl eval-c runs/first
rssl report runs
# a data set of one's own, with its corrupted test set
rssl prepare-data --dataset mine --source path/to/images --corruptions generate
rssl train-automl --dataset mine --epochs 30
""",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(cls=Command, rich_help_panel=panel)(command)

# Typer exports this class only by way of its child.
_UsageError: Any = typer.BadParameter.__mro__[1]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"rssl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit: 0 done, 1 failure, 2 the user's mistake, 130 interrupted."""
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], prog_name="rssl", standalone_mode=False) or 0)
    except RsslError as error:
        if not SPEAKS and isinstance(error, UserError | InterruptedTrainingError | LostRankError):
            sys.exit(error.exit_code)  # the first rank says the same
        _fail(str(error), error.exit_code)
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "rssl"
        message = error.format_message().rstrip(".")
        if hasattr(error, "possibilities"):
            message = _unknown_option(error.option_name, error.possibilities or ())
        _fail(f"{message} (see {command} --help)", 2)
    except BrokenPipeError:
        _fail("the reader of the output went away", 1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}", 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)


def _unknown_option(name: str, possibilities: Iterable[str]) -> str:
    # Without the dashes, which make any two names look alike.
    names = {option.lstrip("-"): option for option in possibilities}
    near = nearest(name.lstrip("-"), names)
    return f"unknown option {quoted(name)}" + (f": did you mean '{names[near]}'?" if near else "")


def _fail(message: str, code: int) -> None:
    # One line, and no control characters that a file name may hold reach the terminal.
    line = "".join(c if c.isprintable() else " " for c in spell_options(message))
    print(f"rssl: error: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(code)
