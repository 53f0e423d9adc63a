"""The generator: errors, parts that do not depend on the rest, files, resuming."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rsslcli.core.corruptions import generate as module
from rsslcli.core.corruptions.blur import disk
from rsslcli.core.corruptions.generate import corrupt, generate_corrupted
from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.corruptions.parameters import ICE, TABLES
from rsslcli.core.data.corrupted import open_corrupted
from rsslcli.core.errors import UserError

Images = NDArray[np.uint8]
PAIR = ("contrast", "gaussian_noise")
#: Two pixels of `picture` at severity 3, at each size.
DRAWN = {
    "gaussian_noise": "123 67 157 119 128 198 | 112 42 135 113 127 94 | 129 56 223 191 92 0",
    "shot_noise": "124 79 145 81 130 153 | 117 35 86 102 107 112 | 170 42 148 42 106 21",
    "impulse_noise": "127 63 168 79 127 182 | 127 63 80 83 127 115 | 127 63 152 84 127 22",
    "defocus_blur": "127 63 168 79 127 182 | 127 63 80 83 127 115 | 127 63 152 83 127 83",
    "glass_blur": "125 55 160 78 125 180 | 125 58 68 80 126 109 | 123 60 120 80 123 174",
    "motion_blur": "136 69 181 88 133 195 | 131 66 93 87 130 128 | 132 67 165 89 131 81",
    "zoom_blur": "123 63 165 78 123 178 | 125 65 80 83 125 113 | 126 67 179 86 126 39",
    "snow": "141 83 178 128 171 221 | 164 120 132 185 216 208 | 168 123 186 169 199 125",
    "frost": "201 145 244 164 209 255 | 192 143 161 156 193 188 | 231 189 255 182 215 149",
    "fog": "125 89 149 99 127 158 | 126 94 102 105 127 121 | 96 78 104 139 152 122",
    "brightness": "155 77 206 95 153 220 | 203 100 128 132 203 184 | 190 94 228 134 203 35",
    "contrast": "124 99 144 105 124 150 | 125 112 119 116 125 126 | 126 113 132 117 126 106",
    "elastic_transform": "123 60 162 68 109 157 | 124 59 70 70 112 68 | 125 61 129 79 121 221",
    "pixelate": "123 63 165 75 123 176 | 127 63 80 81 127 112 | 127 63 149 84 127 19",
    "jpeg_compression": "119 60 154 79 130 187 | 132 68 56 79 124 130 | 126 60 132 69 125 34",
    "speckle_noise": "120 56 114 77 130 174 | 143 57 54 120 136 113 | 91 71 137 103 128 24",
    "gaussian_blur": "127 63 168 79 127 182 | 127 63 80 83 127 115 | 127 63 151 83 127 74",
    "spatter": "127 63 168 96 150 205 | 127 63 80 83 127 115 | 127 63 152 84 127 22",
    "saturate": "106 10 168 27 99 182 | 127 0 33 39 127 103 | 109 0 152 74 127 0",
}
pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture(scope="session")
def labels() -> NDArray[np.int64]:
    return np.arange(40) % 10


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def picture(side: int) -> Images:
    """One image, uint8 (1, side, side, 3), of two slopes and stripes."""
    rows, columns = np.mgrid[:side, :side]
    planes = (columns * 255 // side, rows * 255 // side, (rows + columns) * 7 % 256)
    return np.stack(planes, -1).astype(np.uint8)[None]


def test_names_come_without_torch() -> None:
    code = "import sys; from rsslcli.core.corruptions import names, record; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestCorrupt:
    @given(count=st.integers(0, 3), name=st.sampled_from(CORRUPTIONS), severity=st.sampled_from(SEVERITIES))
    @settings(max_examples=15, deadline=None)
    def test_keeps_shape_and_dtype_and_input(self, count: int, name: str, severity: int) -> None:
        clean = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        before = clean.copy()
        result = corrupt(clean, name, severity)
        assert result.shape == clean.shape
        assert result.dtype == np.uint8
        assert np.array_equal(clean, before)

    @pytest.mark.parametrize("name", CORRUPTIONS)
    def test_first_images_do_not_depend_on_those_that_follow(self, name: str, images: Images) -> None:
        assert np.array_equal(corrupt(images[:7], name, 3), corrupt(images, name, 3)[:7])

    @pytest.mark.parametrize(
        ("severity", "expected"),
        [(1, [[141, 137, 104], [135, 124, 117]]), (3, [[114, 107, 145], [143, 116, 154]])],
    )
    def test_severity_and_chunk_decide_what_is_drawn(self, severity: int, expected: list[list[int]]) -> None:
        """Other numbers than these need another GENERATOR_VERSION, or a set would mix two draws."""
        gray = np.full((module.CHUNK[64] + 1, 64, 64, 3), 128, np.uint8)
        drawn = corrupt(gray, "gaussian_noise", severity)[[0, -1], 0, 0].astype(int)
        assert np.abs(drawn - expected).max() <= 1, drawn.tolist()

    @pytest.mark.parametrize("name", CORRUPTIONS)
    def test_what_is_drawn_is_that_of_this_version(self, name: str) -> None:
        """As above. The numbers are our own: fidelity is tested where the original's output is at hand."""
        for side, expected in zip((32, 64, 224), DRAWN[name].split(" | "), strict=True):
            drawn = corrupt(picture(side), name, 3)[0, [side // 4, side // 2], [side // 2, side // 3]]
            assert np.abs(drawn.ravel().astype(int) - np.fromstring(expected, int, sep=" ")).max() <= 1

    def test_parameters_are_those_of_this_version(self) -> None:
        """As above, for all severities."""
        text = repr((TABLES, ICE)).encode()
        assert hashlib.sha256(text).hexdigest()[:16] == "bc9cb2f92005b750"

    def test_pixels_do_not_depend_on_the_order_of_sums(self, images: Images, tmp_path: Path) -> None:
        """MKL sums a product in another order on each kind of processor, or if this variable says so."""
        disks = TABLES[224]["defocus_blur"]
        names = ("gaussian_blur", "glass_blur", "zoom_blur", "elastic_transform")
        np.save(tmp_path / "clean.npy", images)
        code = (
            "import sys, numpy as np; from rsslcli.core.corruptions import generate as module\n"
            "module.CHUNK[32] = 16; clean = np.load(sys.argv[1])\n"
            "np.save(sys.argv[2], np.stack([module.corrupt(clean, name, 3) for name in sys.argv[3:]]))\n"
            f"from {disk.__module__} import disk; kernels = [disk(*pair) for pair in {disks}]\n"
            "np.savez(sys.argv[2] + '.npz', *kernels)"
        )
        files = [tmp_path / "clean.npy", tmp_path / "there.npy"]
        other = os.environ | {"MKL_CBWR": "COMPATIBLE"}
        subprocess.run([sys.executable, "-c", code, *files, *names], env=other, check=True)
        here = np.stack([corrupt(images, name, 3) for name in names])
        assert np.array_equal(here, np.load(tmp_path / "there.npy"))
        with np.load(tmp_path / "there.npy.npz") as kernels:
            assert all(map(np.array_equal, map(disk, *zip(*disks, strict=True)), kernels.values()))

    def test_the_seed_changes_the_numbers(self, images: Images) -> None:
        assert np.array_equal(corrupt(images, "fog", 1, seed=3), corrupt(images, "fog", 1, seed=3))
        assert not np.array_equal(corrupt(images, "fog", 1, seed=3), corrupt(images, "fog", 1, seed=4))

    @pytest.mark.parametrize(
        ("name", "severity", "shape", "dtype", "message"),
        [
            ("gausian_noise", 1, (1, 32, 32, 3), np.uint8, "did you mean 'gaussian_noise'?"),
            ("?", 1, (1, 32, 32, 3), np.uint8, "choose from gaussian_noise, "),
            ("fog", 0, (1, 32, 32, 3), np.uint8, "severity must be one of 1, 2, 3, 4, 5, not 0"),
            ("fog", 1, (32, 32, 3), np.uint8, "uint8 (N, H, W, 3), not uint8 (32, 32, 3)"),
            ("fog", 1, (1, 32, 32, 3), np.float32, "not float32"),
            ("fog", 1, (1, 48, 48, 3), np.uint8, "of 32×32, 64×64 and 224×224 pixels, not 48×48"),
            ("fog", 1, (1, 32, 64, 3), np.uint8, "pixels, not 64×32"),
        ],
    )
    def test_errors_are_one_clear_line(
        self, name: str, severity: int, shape: tuple[int, ...], dtype: type, message: str
    ) -> None:
        with pytest.raises(UserError) as error:
            corrupt(np.zeros(shape, dtype), name, severity)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


class TestFiles:
    def test_layout_is_that_of_cifar10_c(
        self, images: Images, labels: NDArray[np.int64], tmp_path: Path
    ) -> None:
        calls: list[tuple[int, int]] = []
        generate_corrupted(
            images,
            labels,
            tmp_path,
            corruptions=PAIR,
            progress=lambda _, done, total: calls.append((done, total)),
        )
        assert calls == [(done, 10) for done in range(11)]
        assert {path.name for path in tmp_path.iterdir()} == {
            "contrast.npy", "gaussian_noise.npy", "labels.npy", "corruptions.json",
        }  # fmt: skip
        stored_labels = np.load(tmp_path / "labels.npy")
        assert stored_labels.dtype == np.uint8
        assert np.array_equal(stored_labels, np.tile(labels, 5))
        for name in PAIR:
            stored = np.load(tmp_path / f"{name}.npy")
            assert stored.dtype == np.uint8
            blocks = stored.reshape(5, *images.shape)
            for severity in SEVERITIES:
                assert np.array_equal(blocks[severity - 1], corrupt(images, name, severity))

    @pytest.mark.parametrize("side", [64, 224])
    def test_larger_images_are_written_at_their_own_size(self, side: int, tmp_path: Path) -> None:
        large = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
        generate_corrupted(large, np.arange(3), tmp_path, corruptions=PAIR)
        for name in PAIR:
            stored = np.load(tmp_path / f"{name}.npy")
            assert stored.shape == (15, side, side, 3)
            assert np.array_equal(stored[6:8], corrupt(large[:2], name, 3))
        record = json.loads((tmp_path / "corruptions.json").read_text(encoding="utf-8"))
        assert record["contrast"]["identity"]["size"] == side

    def test_a_record_without_the_size_is_of_32_pixels(
        self, images: Images, labels: NDArray[np.int64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generate_corrupted(images, labels, tmp_path, corruptions=PAIR)
        path = tmp_path / "corruptions.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        for entry in record.values():
            del entry["identity"]["size"]
        path.write_text(json.dumps(record), encoding="utf-8")
        monkeypatch.setattr(module, "_corrupt_chunk", None)  # finished: not called
        generate_corrupted(images, labels, tmp_path, corruptions=PAIR)

    def test_number_of_workers_does_not_matter(
        self, images: Images, labels: NDArray[np.int64], tmp_path: Path
    ) -> None:
        for workers in (1, 3):
            generate_corrupted(
                images, labels, tmp_path / str(workers), corruptions=("zoom_blur", "snow"), workers=workers
            )
        assert contents(tmp_path / "1") == contents(tmp_path / "3")

    @pytest.mark.parametrize("stop_after", [1, 4, 6])
    def test_goes_on_after_an_interruption(
        self, images: Images, labels: NDArray[np.int64], tmp_path: Path, stop_after: int
    ) -> None:
        whole, broken = tmp_path / "whole", tmp_path / "broken"
        generate_corrupted(images, labels, whole, corruptions=PAIR)

        def interrupt(description: str, done: int, total: int) -> None:
            if done == stop_after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            generate_corrupted(images, labels, broken, corruptions=PAIR, workers=1, progress=interrupt)
        for name in PAIR:  # what has its final name is whole
            if (broken / f"{name}.npy").exists():
                assert (broken / f"{name}.npy").read_bytes() == (whole / f"{name}.npy").read_bytes()
        started: list[int] = []
        generate_corrupted(
            images, labels, broken, corruptions=PAIR, progress=lambda _, done, __: started.append(done)
        )
        assert started[0] >= stop_after
        assert contents(broken) == contents(whole)

    def test_some_severities_leave_the_file_unfinished(
        self, images: Images, labels: NDArray[np.int64], tmp_path: Path
    ) -> None:
        generate_corrupted(images, labels, tmp_path, corruptions=["contrast"], severities=(2, 4))
        assert not (tmp_path / "contrast.npy").exists()
        assert (tmp_path / "contrast.npy.partial").exists()
        done: list[int] = []
        generate_corrupted(
            images, labels, tmp_path, corruptions=["contrast"], progress=lambda _, n, __: done.append(n)
        )
        assert done == [2, 3, 4, 5]
        assert np.array_equal(np.load(tmp_path / "contrast.npy")[:40], corrupt(images, "contrast", 1))
        assert not (tmp_path / "contrast.npy.partial").exists()

    def test_finished_files_are_left_alone(
        self, images: Images, labels: NDArray[np.int64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generate_corrupted(images, labels, tmp_path, corruptions=PAIR)

        def fail(*_: Any) -> None:
            raise AssertionError

        monkeypatch.setattr(module, "_corrupt_chunk", fail)
        generate_corrupted(images, labels, tmp_path, corruptions=PAIR)
        generate_corrupted(images, labels, tmp_path, corruptions=["contrast"], severities=[3])

    @pytest.mark.parametrize(
        "change",
        ["seed", "images", "version", "cut off", "an archive", "no record", "broken record", "nested record"],
    )
    def test_anything_else_is_made_anew(
        self,
        images: Images,
        labels: NDArray[np.int64],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        change: str,
    ) -> None:
        generate_corrupted(images, labels, tmp_path, corruptions=["impulse_noise"])
        file = tmp_path / "impulse_noise.npy"
        seed = 0
        match change:
            case "seed":
                seed = 1
            case "images":
                images = images[::-1]
            case "version":
                monkeypatch.setattr(module, "GENERATOR_VERSION", module.GENERATOR_VERSION + 1)
            case "cut off":
                file.write_bytes(file.read_bytes()[:-1])
            case "an archive":  # which NumPy would open
                np.savez(tmp_path / "archive.npz", np.zeros(3))
                (tmp_path / "archive.npz").replace(file)
            case "nested record":
                (tmp_path / "corruptions.json").write_text("[" * 100_000, encoding="utf-8")
            case "no record":
                (tmp_path / "corruptions.json").unlink()
            case "broken record":
                (tmp_path / "corruptions.json").write_text("{", encoding="utf-8")
        done: list[int] = []
        generate_corrupted(
            images, labels, tmp_path, corruptions=["impulse_noise"], seed=seed,
            progress=lambda _, n, __: done.append(n),
        )  # fmt: skip
        assert done == [0, 1, 2, 3, 4, 5]
        assert np.array_equal(np.load(file)[:40], corrupt(images, "impulse_noise", 1, seed=seed))

    @pytest.mark.parametrize(
        "entry",
        [
            None, "x", {}, {"identity": {}}, {"identity": 5, "severities": []},
            {"severities": [1]}, {"severities": None}, {"severities": [[]]}, {"severities": ["1"]},
            {"severities": [1, 1, 1, 1, 1]}, {"severities": [1, 2, 3, 4, 9]}, {"severities": [True]},
        ],
    )  # fmt: skip
    def test_entries_of_another_kind_are_not_believed(
        self, images: Images, labels: NDArray[np.int64], tmp_path: Path, entry: Any
    ) -> None:
        generate_corrupted(images, labels, tmp_path, corruptions=["contrast"], severities=[1])
        record = json.loads((tmp_path / "corruptions.json").read_text(encoding="utf-8"))
        changed = record["contrast"] | entry if isinstance(entry, dict) and entry else entry
        record = {"contrast": changed, "../x": record["contrast"]}
        (tmp_path / "corruptions.json").write_text(json.dumps(record), encoding="utf-8")
        generate_corrupted(images, labels, tmp_path, corruptions=["contrast"])
        assert np.array_equal(np.load(tmp_path / "contrast.npy")[:40], corrupt(images, "contrast", 1))
        record = json.loads((tmp_path / "corruptions.json").read_text(encoding="utf-8"))
        assert record.keys() == {"contrast"}

    def test_links_in_the_way_are_not_followed(
        self, images: Images, labels: NDArray[np.int64], tmp_path: Path
    ) -> None:
        (tmp_path / "mine").write_bytes(b"mine")
        (tmp_path / "set").mkdir()
        hidden = [
            f".{name}.{platform.node()}-{os.getpid()}.part" for name in ("labels.npy", "corruptions.json")
        ]
        for name in ("labels.npy", "contrast.npy.partial", *hidden):
            (tmp_path / "set" / name).symlink_to(tmp_path / "mine")
        generate_corrupted(images, labels, tmp_path / "set", corruptions=["contrast"])
        assert (tmp_path / "mine").read_bytes() == b"mine"
        assert not any(path.is_symlink() for path in (tmp_path / "set").iterdir())

    def test_outdated_files_are_gone_before_new_ones_are_whole(
        self, images: Images, labels: NDArray[np.int64], tmp_path: Path
    ) -> None:
        generate_corrupted(images, labels, tmp_path, corruptions=["contrast"])
        generate_corrupted(images[:20], labels[:20], tmp_path, corruptions=["contrast"], severities=[1])
        assert not (tmp_path / "contrast.npy").exists()
        record = json.loads((tmp_path / "corruptions.json").read_text(encoding="utf-8"))
        assert record["contrast"]["severities"] == [1]
        assert record["contrast"]["identity"]["images"] == 20

    @pytest.mark.usefixtures("full_disk")
    def test_a_failed_write_passes_through_and_what_was_finished_stays(
        self, images: Images, labels: NDArray[np.int64], tmp_path: Path
    ) -> None:
        with pytest.raises(OSError, match="No space left"):
            generate_corrupted(images, labels, tmp_path, corruptions=["contrast"], workers=1)
        record = json.loads((tmp_path / "corruptions.json").read_text(encoding="utf-8"))
        assert record["contrast"]["severities"][:2] == [1, 2]
        assert 3 not in record["contrast"]["severities"]

    @pytest.mark.parametrize(
        "wrong",
        [np.arange(39), np.zeros(40), np.zeros((40, 1), int)],
        ids=["too few", "not integers", "shape"],
    )
    def test_labels_must_fit(self, images: Images, wrong: NDArray[Any], tmp_path: Path) -> None:
        with pytest.raises(UserError, match="labels must be 40 integers"):
            generate_corrupted(images, wrong, tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_no_images_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no images"):
            generate_corrupted(np.zeros((0, 32, 32, 3), np.uint8), np.zeros(0, int), tmp_path)

    def test_large_labels_are_kept(self, images: Images, tmp_path: Path) -> None:
        generate_corrupted(images, np.arange(40) + 300, tmp_path, corruptions=["contrast"])
        assert np.load(tmp_path / "labels.npy").max() == 339


def test_a_part_made_of_other_images_leaves_no_mixture(
    images: Images, labels: NDArray[np.int64], tmp_path: Path
) -> None:
    generate_corrupted(images[:9], labels[:9], tmp_path, corruptions=PAIR)
    generate_corrupted(images[:7], labels[:7], tmp_path, corruptions=PAIR[:1])
    assert open_corrupted(tmp_path, "toy").names == PAIR[:1]
    assert json.loads((tmp_path / module.RECORD).read_text()).keys() == {PAIR[0]}
    generate_corrupted(images[:7], labels[:7], tmp_path, corruptions=PAIR, severities=[2])
    assert {path.name for path in tmp_path.iterdir()} == {
        "contrast.npy",
        "gaussian_noise.npy.partial",
        "corruptions.json",
        "labels.npy",
    }
