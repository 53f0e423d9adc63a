"""Is the sign of the meta-gradient signal or noise? Its mean over steps against its standard error.

    python benchmarks/meta_gradient.py runs/automl [...]

An update moves λ by −β ∂L_meta/∂λ, so the metrics of a run, which hold λ after every step, hold the
meta-gradient too. The table has a line per task and span of epochs:

- drift: the mean of −∂L_meta/∂λ ÷ α over its steps, that is, ⟨gᵢ, v⟩ or what a variant
  puts in its place; positive if λ grows.
- t: the mean divided by its standard error, from the variance between steps. Beyond ±2 the sign is not noise.
- up: the percentage of steps in which λ grows.
- at 0: the percentage of steps that end at λ = 0, where it is cut off. Such a step does not show the
  meta-gradient, and without these steps the mean would be too high: if there are any, drift, t and up are –.
- λ: its value after the last of the steps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rsslcli.core.config import Config, read_config_file
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.run_folder import RunFolder

SPANS = 5
Floats = npt.NDArray[np.float64]


class Line(NamedTuple):
    """A line of the table: a task in the epochs from `first` to `last`."""

    task: str
    first: int
    last: int
    drift: float
    t: float
    up: float
    at_zero: float
    value: float


def lines(run: Path) -> Iterator[Line]:
    """The lines of a run, whole run first, then by span of epochs.

    Raises:
        UserError: it has no metrics of steps, or λ does not move by the meta-gradient alone.
    """
    config = Config(**read_config_file(RunFolder(run).config))
    if not config.automl or {"constant-sum", "sgd-lookahead"} & {*config.automl_variants}:
        raise UserError(f"{run}: its λ does not move by the meta-gradient alone")
    alpha, epochs, values = _read(run, config)
    steps = np.flatnonzero(epochs[1:] > config.warmup_epochs)
    if len(steps) < 2 * SPANS:
        raise UserError(f"{run}: too few steps tuned λ")
    moves = np.diff(values, axis=0) / (config.meta_lr * alpha[1:, None])
    for part in [steps, *np.array_split(steps, SPANS)]:
        for index, task in enumerate(config.weighted):
            after = values[part + 1, index]
            x = moves[part, index] if after.all() else np.full(len(part), np.nan)
            error = x.std(ddof=1) / len(x) ** 0.5
            first, last = int(epochs[part[0] + 1]), int(epochs[part[-1] + 1])
            up = float((x > 0).mean()) if after.all() else np.nan
            yield Line(
                task, first, last, x.mean(), x.mean() / error, up, float((after == 0).mean()), after[-1]
            )


def _read(run: Path, config: Config) -> tuple[Floats, Floats, Floats]:
    """α, the epoch and λ, (steps,) each and (steps, k)."""
    records = {}
    try:
        for text in RunFolder(run).metrics.read_text(encoding="utf-8").splitlines():
            record = json.loads(text)
            if "loss/main" in record:
                records[record["step"]] = record  # a step that was repeated after a resume counts once
        ordered = [records[step] for step in sorted(records)]
        alpha = np.array([config.lookahead_scale * record["lr"] for record in ordered], float)
        values = np.array(
            [[record[f"lambda/{task}"] for task in config.weighted] for record in ordered], float
        )
        epochs = np.array([record["epoch"] for record in ordered], float)
    except OSError as error:
        raise UserError(f"{run}: its metrics cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{run}: its metrics are damaged") from None
    if not records:
        raise UserError(f"{run}: no metrics of single steps")
    return alpha, epochs, values


def main() -> int:
    """Print the tables of the runs named on the command line; return 1 if a run has none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    failed = False
    for run in parser.parse_args().runs:
        try:
            found = list(lines(run))
        except RsslError as error:
            print(f"meta_gradient.py: error: {error}", file=sys.stderr)
            failed = True
            continue
        print(f"\n{run}\n\n| task | epochs | drift | t | up | at 0 | λ |")
        print("| :-- | :-- | --: | --: | --: | --: | --: |")
        for line in found:
            print(
                f"| {line.task} | {line.first}–{line.last} | {line.drift:+.4f} | {line.t:+.1f} "
                f"| {line.up:.0%} | {line.at_zero:.0%} | {line.value:.2f} |".replace("nan%", "–").replace(
                    "+nan", "–"
                )
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
