"""Images for training: on the device where they fit, else read batch by batch, with the same pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rsslcli.core.data import gathering
from rsslcli.core.data.gathering import ChosenImages, ImageSource, moved

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
CPU = torch.device("cpu")


@pytest.mark.parametrize("room", [0, 1 << 30], ids=["host", "device"])
@pytest.mark.parametrize("chosen", [None, np.array([7, 2, 9])], ids=["all", "some"])
@pytest.mark.parametrize("count", [1, 3])
def test_positions_run_through_one_array_after_the_other(
    room: int, chosen: np.ndarray | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "MAPPED_BYTES", room)
    arrays = [np.roll(IMAGES, shift, 0) for shift in range(count)]
    source = ImageSource(ChosenImages(arrays, chosen), CPU)
    expected = np.concatenate([array if chosen is None else array[chosen] for array in arrays])
    assert len(source) == len(expected)
    assert source.home == CPU
    assert isinstance(source.images, torch.Tensor) is bool(room)
    positions = torch.randint(len(expected), (20,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(source.gather(positions), torch.from_numpy(expected[positions.numpy()]))
    assert source.gather(positions[:0]).shape == (0, 4, 4, 3)


def test_a_whole_array_is_not_copied() -> None:
    source = ImageSource(ChosenImages([IMAGES]), CPU)
    assert isinstance(source.images, torch.Tensor)
    assert source.images.data_ptr() == IMAGES.ctypes.data


def test_images_for_another_device_stay_on_the_host_if_they_do_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The indices are then needed on the host, and only the batch goes to the device."""
    monkeypatch.setattr(gathering, "_room", lambda device: 0)
    meta = torch.device("meta")
    source = ImageSource(ChosenImages([IMAGES]), meta)
    assert (source.home, source.device) == (CPU, meta)
    assert source.gather(torch.tensor([3, 1])).device == meta


def test_the_host_does_not_wait_for_a_copy_to_cuda() -> None:
    class Recorder:
        device = torch.device("cpu")

        def __init__(self) -> None:
            self.calls: list[object] = []

        def pin_memory(self) -> Recorder:
            self.calls.append("pinned")
            return self

        def to(self, device: torch.device, **options: bool) -> Recorder:
            self.calls += [device.type, options]
            return self

    images: Any = Recorder()
    moved(images, torch.device("cuda"))
    assert images.calls == ["pinned", "cuda", {"non_blocking": True}]


def test_images_take_half_of_the_free_memory_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert gathering._room(torch.device("cuda")) == 500


def test_a_device_is_filled_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    read = ChosenImages.read

    def note(images: ChosenImages, positions: np.ndarray) -> np.ndarray:
        sizes.append(len(positions))
        return read(images, positions)

    monkeypatch.setattr(ChosenImages, "read", note)
    monkeypatch.setattr(gathering, "_CHUNK", 5 * IMAGES[0].nbytes)
    source = ImageSource(ChosenImages([IMAGES]), torch.device("meta"))
    assert isinstance(source.images, torch.Tensor)
    assert source.images.shape == IMAGES.shape
    assert sizes == [5, 5, 2]
