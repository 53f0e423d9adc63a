"""The command line: names the subcommands, and turns every error into one line and an exit code."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, NoReturn

import typer
import typer.main

from rsslcli.commands.console import IS_FIRST_HERE, IS_MAIN_RANK, err, out, set_option_names, spell_options
from rsslcli.commands.demo import demo
from rsslcli.commands.eval_c import eval_c
from rsslcli.commands.export import export
from rsslcli.commands.help import Command, Group
from rsslcli.commands.list import list_
from rsslcli.commands.predict import predict
from rsslcli.commands.prepare_data import prepare_data
from rsslcli.commands.report import report
from rsslcli.commands.reproduce import reproduce
from rsslcli.commands.terminal import lost_output, replace_unprintable
from rsslcli.commands.train_automl import train_automl
from rsslcli.commands.train_single import train_single
from rsslcli.commands.visualize_corruptions import visualize_corruptions
from rsslcli.commands.visualize_tasks import visualize_tasks
from rsslcli.core.config import Config
from rsslcli.core.errors import (
    InterruptedTrainingError,
    LostRankError,
    RsslError,
    UserError,
    nearest,
    rssl_command,
    short_repr,
)
from rsslcli.core.version import __version__

#: The commands in the order of a first session, by section of the help.
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "First look": (demo,),
    "Data": (prepare_data, visualize_tasks, visualize_corruptions),
    "Training": (train_single, train_automl),
    "Results": (eval_c, report, predict, export, list_),
    "The whole study": (reproduce,),
}

app = typer.Typer(
    name="rssl",
    cls=Group,
    help="""Train image classifiers that hold up on corrupted images.

Self-supervision tasks are trained beside the classifier, and their weights tune themselves.
`rssl COMMAND --help` explains a command's options.

# a first look, in minutes on two CPU cores
rssl demo
# a first session
rssl train-automl --preset quick --output runs/first
rssl eval-c runs/first
rssl report runs
# a data set of your own, with its corrupted test set
rssl prepare-data --dataset mine --source path/to/images --corruptions generate
rssl train-single --task none --preset robust --dataset mine --depth 16 --width 1 --epochs 60
""",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "color": out.color_system is not None,
    },
)
for panel, commands in COMMANDS.items():
    for command in commands:
        name = command.__name__.strip("_").replace("_", "-")
        app.command(name, cls=Command, rich_help_panel=panel)(command)

#: The exit code after Ctrl-C.
_INTERRUPTED = 130
#: Seconds that the other ranks wait while the first one reports the error; torchrun ends them once it exits.
_FIRST_SAYS = 10
#: The commands that start over when they are run again after Ctrl-C; the others continue.
_STARTING_OVER = ("export", "list", "predict", "report", "visualize-corruptions", "visualize-tasks")

# Typer exports only a subclass of this class; a test fails once it exports the class itself.
_UsageError: Any = typer.BadParameter.__mro__[1]

#: What torch, cuBLAS, cuDNN and NCCL say when memory runs out.
_OUT_OF_MEMORY = ("allocate memory", "out of memory", "ALLOC_FAILED", "CUDA calloc")
#: What a closed pipe means.
_UNREAD = "the program that read the output has ended"


@cache
def options() -> dict[str, str]:
    """Every option of the commands by the name of its parameter, such as initial_lambda: --lambda."""
    group: Any = typer.main.get_command(app)
    return {
        str(parameter.name): max(parameter.opts, key=len)
        for command in group.commands.values()
        for parameter in command.params
        if parameter.param_type_name == "option"
    }


set_option_names(options)


def _print_version(asked: bool) -> None:
    if asked:
        out.print(f"rssl {__version__}")
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
        _run()
    finally:
        _leave_ranks(sys.exc_info()[1])


def _leave_ranks(error: BaseException | None) -> None:
    """End this process at once if it has not left the other ranks: an orderly end may wait for them."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    code = error.code if isinstance(error, SystemExit) else 1
    if error is not None and not isinstance(error, SystemExit):
        traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _run() -> NoReturn:
    """Run the command that the arguments name, then exit."""
    replace_unprintable(sys.stdout, sys.stderr)
    arguments = sys.argv[1:] or ["--help"]
    if arguments[0] == "help":
        arguments = [*arguments[1:], "--help"]
    try:
        code = app(arguments, prog_name="rssl", standalone_mode=False) or 0
        if code == _INTERRUPTED:  # typer has caught it
            raise KeyboardInterrupt
        if failure := lost_output() or out.failure:
            said = f"cannot write to stdout: {failure.strerror or failure}"
            _fail(f"{_UNREAD if isinstance(failure, BrokenPipeError) else said}; all files are saved", 1)
        sys.exit(code)
    except RsslError as error:
        if isinstance(error, InterruptedTrainingError | LostRankError) and not IS_MAIN_RANK:
            sys.exit(error.exit_code)  # the first rank tells
        message = spell_options(str(error))
        about_option = isinstance(error, UserError) and message.startswith("--")
        _fail(f"{message} (see rssl {arguments[0]} --help)" if about_option else message, error.exit_code)
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        known = arguments[0] in typer.main.get_command(app).commands  # type: ignore[attr-defined]
        command = context.command_path if context else f"rssl {arguments[0]}" if known else "rssl"
        message = error.format_message().rstrip(".")
        if hasattr(error, "possibilities"):
            message = _unknown_option(error.option_name, context, error.possibilities or ())
        _fail(f"{message} (see {command} --help)", 2)
    except (MemoryError, RuntimeError) as error:
        if _is_out_of_memory(error):
            _fail(f"out of memory: choose {_what_takes_less(error, arguments[0])}", 1)
        if str(error).startswith("CUDA error"):
            _fail(f"the GPU failed: {str(error).splitlines()[0]}", 1)
        raise
    except BrokenPipeError:
        _fail(_UNREAD, 1)
    except OSError as error:
        stdout = "cannot write to stdout: " if lost_output() else ""
        place = f"{error.filename}: " if error.filename else stdout
        _fail(f"{place}{error.strerror or error}", 1)
    except (KeyboardInterrupt, typer.Abort):
        if not IS_MAIN_RANK:
            sys.exit(_INTERRUPTED)
        again = "to run it again" if arguments[0] in _STARTING_OVER else "to continue"
        _fail(f"stopped; {again}: {rssl_command(*arguments)}", _INTERRUPTED)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the host or on a device; torch raises plain errors for the former."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    said = any(words in str(error) for words in _OUT_OF_MEMORY)
    return said or bool(kinds & {"MemoryError", "OutOfMemoryError"})


def _what_takes_less(error: Exception, command: str) -> str:
    """What to choose where memory has run out."""
    smaller = "smaller images or a smaller network"
    if command.startswith("train-"):
        return f"a lower --batch-size, {smaller}"
    on_host = isinstance(error, MemoryError) or "CPUAllocator" in str(error)
    return smaller if on_host else f"--device cpu, {smaller}"


def _unknown_option(name: str, context: typer.Context | None, possibilities: Iterable[str]) -> str:
    setting = name.lstrip("-").replace("-", "_")
    takes_file = context is not None and any(each.name == "config" for each in context.command.params)
    if takes_file and setting in {field.name for field in fields(Config)} - options().keys():
        return f"{setting} has no option: set it in a file for --config"
    # Without the dashes, which make any two names look alike.
    names = {option.lstrip("-"): option for option in possibilities}
    near = nearest(name.lstrip("-"), names)
    return f"unknown option {short_repr(name)}" + (f": did you mean '{names[near]}'?" if near else "")


def _fail(message: str, code: int) -> NoReturn:
    if code == UserError.exit_code and not IS_FIRST_HERE:
        time.sleep(_FIRST_SAYS)  # the first rank reports the same error, upon which torchrun ends this one
        sys.exit(code)
    # One line, and no control characters that a file name may hold reach the terminal.
    line = "".join(c if c.isprintable() else " " for c in message).strip()
    begin = "rssl: error:"
    if err.color_system:
        begin = typer.style(begin, fg="red", bold=True)
    with suppress(OSError):  # where stderr cannot be written, the exit code is left
        print(begin, line, file=sys.stderr, flush=True)
    with suppress(OSError):
        lost_output()
    sys.exit(code)
