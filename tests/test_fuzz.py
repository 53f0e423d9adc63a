"""A short run of the fuzzing script: every reader takes damaged and hostile input as it should.

And careless readers of the tests' own, to see that the script finds them out.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import fuzz
import pytest
from fuzz import Evil, Reader, Watch
from hypothesis import strategies as st

from rsslcli.core.errors import UserError

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
Read = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, fuzz.hang)
    yield
    signal.signal(signal.SIGALRM, before)


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=500)


def test_readers_take_or_refuse_whatever_comes(tmp_path: Path) -> None:
    ended = run("--inputs", "60", "--save", str(tmp_path / "problems"), folder=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not (tmp_path / "problems").exists()


def test_an_unknown_reader_is_an_error_that_lists_them(tmp_path: Path) -> None:
    ended = run("--only", "nonsense", folder=tmp_path)
    assert ended.returncode == 2
    assert "checkpoint, state dict" in ended.stderr


def test_an_input_that_ends_the_process_is_kept(tmp_path: Path) -> None:
    code = (
        "import os, fuzz; from pathlib import Path\n"
        "def read(folder): (folder / 'file').read_bytes() == b'' or os._exit(3)\n"
        "reader = fuzz.Reader({'file': b''}, [read], fuzz.named('file', fuzz.st.just(b'deadly')))\n"
        "fuzz.fuzz(reader, 1, 0, Path('root').resolve(), Path('save').resolve(), fuzz.Result('a reader'))"
    )
    path = os.pathsep.join([str(SCRIPT.parent), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, check=False
    )
    assert ended.returncode == 3
    assert (tmp_path / "save" / "current-a-reader-file").read_bytes() == b"deadly"


def load_carelessly(folder: Path) -> None:
    pickle.loads((folder / "file").read_bytes())


def prints_in_c(folder: Path) -> None:
    ctypes.CDLL(None).puts(b"noise")


def warns(folder: Path) -> None:
    warnings.warn("noise", stacklevel=1)


def hides_a_bomb(folder: Path) -> None:
    try:
        raise MemoryError
    except MemoryError:
        raise UserError("damaged") from None


def hides_a_bomb_of_torch(folder: Path) -> None:
    try:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    except RuntimeError as error:
        raise UserError("damaged") from error


def takes_memory(folder: Path) -> None:
    bytearray(fuzz.GROWTH + (50 << 20))


def refuses(folder: Path) -> None:
    raise UserError("damaged")


def refuses_unprintably(folder: Path) -> None:
    raise UserError("\x1b[31m")


@pytest.mark.parametrize(
    ("reads", "why"),
    [
        ([load_carelessly], "outside"),
        ([lambda folder: print("noise")], "prints"),
        ([prints_in_c], "prints"),
        ([warns], "warning 'noise'"),
        ([hides_a_bomb], "memory ran out"),
        ([hides_a_bomb_of_torch], "memory ran out"),
        ([takes_memory], "MiB"),
        ([refuses_unprintably], "message"),
        ([refuses, load_carelessly], "outside"),
    ],
)
def test_careless_readers_are_found_out_every_time(
    reads: list[Read], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = pickle.dumps(Evil())
    watch = Watch(Reader({"file": b"valid"}, reads, st.just(("file", evil))), tmp_path / "root")
    with capsys.disabled():
        for _ in range(2):
            outcome, said = watch.read(("file", evil))
            assert outcome == "problem"
            assert why in said
    assert Path.cwd() != watch.folder


def test_a_reader_that_hangs_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(folder: Path) -> None:
        while True:
            pass

    monkeypatch.setattr(fuzz, "DEADLINE", 0.2)
    watch = Watch(Reader({"file": b""}, [hangs], st.just(("file", b""))), tmp_path / "root")
    assert watch.read(("file", b"")) == ("problem", "takes longer than 0.2 s")


def test_careful_readers_are_not(tmp_path: Path) -> None:
    watch = Watch(Reader({"file": b""}, [refuses], st.just(("file", b""))), tmp_path / "root")
    assert watch.read(("file", b"")) == ("refused", "damaged")
    watch = Watch(Reader({"file": b""}, [Path.iterdir], st.just(("file", b""))), tmp_path / "root")
    assert watch.read(("file", b"")) == ("accepted", "")


@pytest.mark.parametrize("name", ["../x.txt", "../canary/x.txt", "../../../canary/x.txt"])
def test_an_archive_that_unpacks_elsewhere_is_found_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    from rsslcli.core.data import cifar

    for attribute in ("train_list", "test_list", "meta"):
        monkeypatch.setattr(CIFAR10, attribute, getattr(CIFAR10, attribute))
    monkeypatch.setattr(cifar, "OFFICIAL", dict(cifar.OFFICIAL))
    fuzz.example_cifar.cache_clear()
    reader = fuzz.unpacked_cifar_reader()
    archive = fuzz.squeezed(fuzz.as_tar([(name, b"", 0)]), "gz")
    watch = Watch(reader, tmp_path / "root")
    (item,) = reader.files.items()
    assert watch.read(item) == ("accepted", "")
    assert watch.read((item[0], archive))[0] == "refused"
    monkeypatch.setattr(tarfile, "data_filter", tarfile.fully_trusted_filter)
    assert watch.read((item[0], archive))[0] == "problem"
