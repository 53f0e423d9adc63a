"""Predictions are the classifier's, labels are the folders', and nothing but a batch is kept in memory."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import rsslcli
from rsslcli.core.data.image_files import find_images
from rsslcli.core.data.image_tree import read_image_tree
from rsslcli.core.errors import DivergedError, UserError
from rsslcli.core.evaluation.predictions import (
    Confusion,
    Prediction,
    class_names,
    csv_header,
    folder_labels,
    predict,
)
from rsslcli.core.networks.wide_resnet import WideResNet

CPU = torch.device("cpu")
CLASSES = ("blue", "green", "red")


class Reddest(nn.Module):
    """Scores: how blue, green and red an image is on average."""

    def forward(self, images: Tensor) -> Tensor:
        return 10 * images.mean((2, 3)).flip(1)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve single-colored images in the folders of their colors."""
    for index, name in enumerate(CLASSES):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(4):
            color = [10 * number] * 3
            color[2 - index] = 200
            Image.new("RGB", (40, 30), tuple(color)).save(folder / f"{number}.png")
    return tmp_path / "photos"


def test_predictions_are_the_softmax_of_the_scores(photos: Path) -> None:
    predictions = list(predict(Reddest(), find_images([photos]), CLASSES, device=CPU, top=3, batch=5))
    images = rsslcli.load_images([prediction.file for prediction in predictions]).double().numpy()
    scores = np.exp(10 * images.mean((2, 3))[:, ::-1])
    expected = scores / scores.sum(1, keepdims=True)
    for prediction, probabilities in zip(predictions, expected, strict=True):
        names = [name for name, _ in prediction.ranking]
        assert names == [CLASSES[index] for index in np.argsort(-probabilities, kind="stable")]
        values = [value for _, value in prediction.ranking]
        np.testing.assert_allclose(values, np.sort(probabilities)[::-1], rtol=1e-5)
        assert prediction.prediction == prediction.label == Path(prediction.file).parent.name
        assert prediction.probability == values[0]


def test_a_classifier_predicts_in_evaluation_mode(photos: Path) -> None:
    model = nn.Sequential(nn.Dropout(0.9), Reddest()).train()
    files = find_images([photos])
    expected = list(predict(Reddest(), files, CLASSES, device=CPU))
    assert list(predict(model, files, CLASSES, device=CPU)) == expected


def test_a_wrapped_classifier_gets_the_batches_in_order_and_may_take_gradients(photos: Path) -> None:
    class Adapting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.sizes: list[int] = []

        def forward(self, images: Tensor) -> Tensor:
            self.sizes.append(len(images))
            with torch.enable_grad():
                loss = (images.mean((2, 3)) * self.scale).sum()
                (gradient,) = torch.autograd.grad(loss, self.scale)
            return images.mean((2, 3)).flip(1) * gradient

    model = Adapting()
    assert len(list(predict(model, find_images([photos]), CLASSES, device=CPU, batch=5))) == 12
    assert model.sizes == [5, 5, 2]


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """Names are kept, at under a kilobyte each; an image in memory would be 3 kB and more."""
    source = tmp_path / "source.jpg"
    Image.new("RGB", (32, 32), "red").save(source)
    (tmp_path / "photos").mkdir()
    peaks = []
    for count in (100, 1100):
        for index in range(count):
            shutil.copy(source, tmp_path / "photos" / f"{index:04}.jpg")
        tracemalloc.start()
        predictions = predict(Reddest(), find_images([tmp_path / "photos"]), CLASSES, device=CPU)
        assert sum(1 for _ in predictions) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 1000 * 1000


def test_the_label_is_the_first_folder_with_the_name_of_a_class() -> None:
    label = folder_labels(("café", "tea"))
    assert label(("photos", "tea", "café")) == "tea"
    assert label(("cafe\u0301", "1")) == "café"
    assert label(()) is label(("Tea", "other")) is None


def test_images_outside_the_class_folders_have_no_label(photos: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(photos / "loose.png")
    (photos / "red").rename(photos / "rouge")
    predictions = list(predict(Reddest(), find_images([photos]), CLASSES, device=CPU))
    confusion = Confusion(CLASSES)
    for prediction in predictions:
        confusion.add(prediction)
    assert len(predictions) == 13
    assert confusion.images == 8
    assert confusion.recall == [1.0, 1.0, None]


def test_rates_are_those_of_the_counts() -> None:
    confusion = Confusion(("a", "b", "c", "d"))
    counts = {("a", "a"): 7, ("a", "b"): 2, ("a", "c"): 1, ("b", "b"): 3, ("b", "a"): 3, ("c", "b"): 4}
    for (label, predicted), count in counts.items():
        for _ in range(count):
            confusion.add(Prediction("file", label, ((predicted, 0.5),)))
    confusion.add(Prediction("file", None, (("d", 0.5),)))
    assert confusion.images == 20
    assert confusion.accuracy == 0.5
    assert confusion.recall == [0.7, 0.5, 0.0, None]
    assert confusion.precision == [0.7, 1 / 3, 0.0, None]
    assert confusion.mistakes(0) == [("b", 2), ("c", 1)]
    assert confusion.mistakes(3) == []
    # The ends of the interval are the accuracies p from which 0.5 is 1.96 standard errors away.
    for end in confusion.interval:
        assert abs(0.5 - end) / math.sqrt(end * (1 - end) / 20) == pytest.approx(1.959964)
    content = json.loads(confusion.to_json({"checkpoint": "run"}))
    assert content["checkpoint"] == "run"
    assert content["confusion"][0] == [7, 2, 1, 0]
    assert content["per_class"][1] == {"class": "b", "images": 6, "recall": 0.5, "precision": 1 / 3}


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_the_interval_of_no_and_of_only_mistakes_stays_within_0_and_1(accuracy: float) -> None:
    confusion = Confusion(("a", "b"))
    assert confusion.interval == (0, 1)
    for _ in range(3):
        confusion.add(Prediction("file", "a", (("a" if accuracy else "b", 0.5),)))
    low, high = confusion.interval
    assert 0 <= low <= accuracy <= high <= 1
    assert high - low == pytest.approx(0.5615, abs=1e-3)  # z² / (n + z²)


NAMES = (
    "a.jpg", "a\nb", "\x1b[31m", '"q", r', "\udcff.png", "a\\nb", "=1+1", "-x", "@",
    "été", "日本", "\u202e", "",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_one_printable_line_and_can_be_recovered(name: str) -> None:
    prediction = Prediction(name, "=label", (("=a\n", 0.123456789), ("b", 1e-9)))
    line = prediction.to_csv(labeled=True)
    assert line.count("\n") == 1
    assert line[:-1].isprintable()
    line.encode()
    (row,) = csv.DictReader(io.StringIO(csv_header(2, labeled=True) + line))
    assert not row["file"].startswith(("=", "+", "-", "@"))
    assert not row["prediction"].startswith("=")
    assert recovered(row["file"]) == name
    assert (row["probability"], row["prediction_2"], row["probability_2"]) == ("0.123457", "b", "1e-09")
    text = prediction.to_json(labeled=False)
    assert text.isascii()
    assert text.count("\n") == 1
    content = json.loads(text)
    assert "label" not in content
    assert (content["file"], content["top"][1]) == (name, {"class": "b", "probability": 1e-9})


def recovered(cell: str) -> str:
    return cell.encode("latin-1", "backslashreplace").decode("unicode_escape")


def test_classes_without_names_are_numbers() -> None:
    network = WideResNet(10, 1, 3)
    assert class_names(network, 3) == ("0", "1", "2")
    network.classes = CLASSES
    assert class_names(network, 3) == CLASSES
    network.classes = ("a", "a", "b")
    with pytest.raises(UserError, match="give each score a different name"):
        class_names(network, 3)


def test_scores_that_are_no_numbers_are_an_error_that_names_the_image(photos: Path) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            scores = images.mean((2, 3))
            scores[-1] = math.nan
            return scores

    with pytest.raises(DivergedError, match=r"the scores of .*green/0\.png are NaN or infinite"):
        list(predict(Broken(), find_images([photos]), CLASSES, device=CPU, batch=5))
    with pytest.raises(UserError, match="gives 3 scores, but has 2 classes"):
        list(predict(Reddest(), find_images([photos]), CLASSES[:2], device=CPU))


def test_load_images_reads_what_prepare_data_reads(photos: Path, tmp_path: Path) -> None:
    train, _ = read_image_tree(photos)
    loaded = rsslcli.load_images([photos / name for name in train.files])
    assert loaded.dtype is torch.float32
    assert torch.equal(loaded, torch.from_numpy(train.images).permute(0, 3, 1, 2) / 255)
    assert rsslcli.load_images([]).shape == (0, 3, 32, 32)
    (tmp_path / "text.png").write_text("text")
    for path, message in (
        (tmp_path, "is no file"),
        ("none.png", "is no file"),
        (tmp_path / "text.png", "not an image"),
    ):
        with pytest.raises(UserError, match=message):
            rsslcli.load_images(path)
    with pytest.raises(UserError, match="size: expected 1 to 4096, got 0"):
        rsslcli.load_images(photos / train.files[0], size=0)


def test_load_images_takes_any_size(tmp_path: Path) -> None:
    """Against Pillow's own scaling of the center square, without averaging before."""
    random = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(random).resize((640, 480), Image.Resampling.BICUBIC)
    image.save(tmp_path / "photo.png")
    image.save(tmp_path / "photo.jpg", quality=100)
    for size in (16, 64, 224):
        loaded = rsslcli.load_images([tmp_path / "photo.png", tmp_path / "photo.jpg"], size=size)
        assert loaded.shape == (2, 3, size, size)
        square = image.crop((80, 0, 560, 480)).resize((size, size), Image.Resampling.LANCZOS)
        difference = np.asarray(square, np.float32).transpose(2, 0, 1) / 255 - loaded.numpy()
        assert (np.abs(difference).mean((1, 2, 3)) < 0.005).all()
    exact = rsslcli.load_images(str(tmp_path / "photo.png"), size=480)
    square = np.array(image.crop((80, 0, 560, 480)))
    assert torch.equal(exact[0], torch.from_numpy(square).permute(2, 0, 1) / 255)
