"""The suggested next command for this data and machine: the lines that begin with `next:`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from rsslcli.commands.console import note, shell_command, suggest_next
from rsslcli.core.config import Config, read_config_file
from rsslcli.core.errors import UserError
from rsslcli.core.networks.names import is_custom
from rsslcli.core.run_folder import CHECKPOINT, CONFIG, RunFolder, folder_of
from rsslcli.core.study.grid import PLAN
from rsslcli.core.tasks.registry import is_known

#: Fewer training images than this call for a small network, small batches and many epochs.
_FEW = 3000
#: How many neighboring runs are considered.
_BESIDE = 50


def suggest_training(dataset: str, images: int, data_dir: Path, *, with_tasks: bool = False) -> None:
    """Suggest a training with settings for the data set and this machine.

    Args:
        dataset: the name of the data set.
        images: how many training images it has.
        data_dir: where it is.
        with_tasks: whether to suggest tasks for any data set. Otherwise only the paper's data sets get tasks;
            for others the suggestion is the preset `robust`.
    """
    from rsslcli.core.data.cifar import OFFICIAL
    from rsslcli.core.data.store import EMBEDDED

    if dataset == EMBEDDED:
        suggest_next("train-automl", "--preset", "quick", data_dir=data_dir)
        return
    with_tasks = with_tasks or dataset in OFFICIAL
    command = ["train-automl"] if with_tasks else ["train-single", "--task", "none", "--preset", "robust"]
    small = ["--depth", "16", "--width", "1"]
    if images < _FEW:  # as docs/data.md recommends
        small += ["--batch-size", str(min(16, images)), "--epochs", "60"]
    elif _has_gpu():
        small = []
    elif with_tasks:
        small = ["--preset", "small"]
    suggest_next(*command, "--dataset", dataset, *small, data_dir=data_dir)


def _has_gpu() -> bool:
    from rsslcli.core.runtime import resolve_device

    return resolve_device("auto").type != "cpu"


def suggest_resuming(run: Path, config: Config, data_dir: Path) -> None:
    """For an interrupted run: continue it."""
    command = ["train-single" if config.is_single else "train-automl", "--resume", "--output", run]
    command += ["--network", config.network] if is_custom(config.network) else []
    unknown = [task for task in config.tasks if not is_known(task)]
    if unknown:
        text = shell_command(*command, data_dir=data_dir)
        note(f"to resume {run}: `{text}`, with --task-file and the file that defines {', '.join(unknown)}")
    else:
        suggest_next(*command, data_dir=data_dir)


def suggest_evaluation(run: Path, config: Config, data_dir: Path) -> None:
    """For a trained run: evaluate it, on the images of the AutoML runs beside it; if that is done, report."""
    from rsslcli.core.data.cifar import OFFICIAL
    from rsslcli.core.data.store import EMBEDDED, dataset_folder, is_prepared

    if RunFolder(run).state() == "done":
        suggest_report(run)
        return
    if config.dataset != EMBEDDED and not is_prepared(data_dir, config.dataset):
        note(f"{config.dataset} is not in {data_dir}: to evaluate {run}, name its folder with --data-dir")
        return
    labels = dataset_folder(data_dir, config.dataset) / "corrupted" / "labels.npy"
    if config.dataset != EMBEDDED and not labels.is_file():
        missing = ("--dataset", config.dataset, "--corruptions", "generate")
        suggest_next("prepare-data", *missing, data_dir=data_dir)
        return
    fair: list[str | Path] = []
    if not config.automl:
        tuned = _tuned_beside(run, config.dataset)
        drawn = (config.seed, config.validation_images)
        of_study = config.dataset in (EMBEDDED, *OFFICIAL) or (folder_of(run) / PLAN).is_file()
        if drawn in tuned.values() or (not tuned and of_study):
            fair = ["--leave-out-validation"]  # in studies, where AutoML runs may follow
        elif tuned:
            fair = ["--same-images-as", next(iter(tuned))]
    if is_custom(config.network):
        fair = ["--network", config.network, *fair]
    suggest_next("eval-c", run, *fair, data_dir=data_dir)


def suggest_report(run: Path) -> None:
    """After an evaluation: report on the run and those beside it."""
    folder = run.parent
    suggest_next("report", run if folder == Path() else folder)


def say_difference_to_baseline(run: Path) -> None:
    """After a whole evaluation: how the run compares with the baseline beside it, if there is one."""
    from rsslcli.core.report.answer import beside_baseline

    if found := beside_baseline(run):
        note(found)


def _tuned_beside(run: Path, dataset: str) -> dict[Path, tuple[int, int]]:
    """The AutoML runs on `dataset` beside a run, latest first, with seeds and validation images."""
    found: dict[Path, tuple[int, int]] = {}
    with suppress(OSError):
        folder = folder_of(run.parent if run.is_file() else run)
        files = sorted(folder.glob(f"*/{CHECKPOINT}"), key=lambda file: -file.stat().st_mtime)
        for file in files[:_BESIDE]:
            with suppress(UserError):
                config = Config(**read_config_file(file.with_name(CONFIG)))
                if config.automl and config.dataset == dataset:
                    found[file.parent] = (config.seed, config.validation_images)
    return found
