"""The tasks against per-image NumPy, SciPy and scikit-image, their losses against formulas written out."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import gaussian_filter
from skimage.color import lab2rgb, rgb2lab
from torch import Tensor

from rsslcli.core.errors import UserError
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks import registry
from rsslcli.core.tasks.base import Task
from rsslcli.core.tasks.color import lab_to_rgb, rgb_to_lab
from rsslcli.core.tasks.reconstruction import blurred
from rsslcli.core.tasks.registry import TASKS, build_tasks, check_task_names

#: The paper's tasks, beside which others may be registered.
PAPER = ("rotation", "color", "ir", "bir", "inpaint", "rgb", "jigsaw")

Array = np.ndarray[Any, np.dtype[Any]]


def task(name: str, **options: float) -> Task:
    return build_tasks([name], {name: options})[name]


def pictures(images: Tensor) -> Array:
    """(N, 3, H, W) → (N, H, W, 3), as pictures are usually kept."""
    return images.permute(0, 2, 3, 1).numpy()


def many(count: int, size: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


# --- Inputs and targets ---------------------------------------------------------------------------------


def test_rotation_makes_all_four_turns_of_every_image(images: Tensor) -> None:
    inputs, targets = task("rotation").transform(images, BatchRandom())
    assert targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    originals, turned = pictures(images), pictures(inputs)
    for i in range(4):
        for turns in range(4):
            assert np.array_equal(turned[turns * 4 + i], np.rot90(originals[i], turns))


@pytest.mark.parametrize("views", [1, 2])
def test_rotation_turns_each_image_by_a_random_angle(views: int, images: Tensor, random: BatchRandom) -> None:
    """With two views the other one is the opposite; the views of image i are i and i + N."""
    inputs, targets = task("rotation", views=views).transform(images.repeat(10, 1, 1, 1), random)
    assert (targets.dtype, targets.shape) == (torch.int64, (40 * views,))
    assert set(targets.tolist()) == {0, 1, 2, 3}
    originals, turned = pictures(images), pictures(inputs)
    for i, turns in enumerate(targets.tolist()):
        assert np.array_equal(turned[i], np.rot90(originals[i % 4], turns))
    for first, second in zip(targets[:40].tolist(), targets[40:].tolist(), strict=False):
        assert abs(first - second) == 2


def test_color_gives_grey_inputs_and_the_bins_of_a_and_b(images: Tensor) -> None:
    inputs, targets = task("color").transform(images, BatchRandom())
    assert (targets.dtype, targets.shape) == (torch.int64, (4, 2, 32, 32))
    for i, image in enumerate(pictures(images)):
        gray = image @ np.array([0.2989, 0.5870, 0.1140])
        for channel in range(3):
            np.testing.assert_allclose(inputs[i, channel].numpy(), gray, rtol=1e-12)
        lab = rgb2lab(image)
        for channel in (0, 1):
            position = (lab[..., channel + 1] + 128) / 8
            # scikit-image rounds its constants as we do, but sums in another order: stay off the bin edges.
            inside = np.abs(position - np.round(position)) > 1e-6
            assert inside.mean() > 0.99
            assert np.array_equal(targets[i, channel].numpy()[inside], np.floor(position)[inside])
    assert len(targets.unique()) > 5, "the comparison needs colors of several bins"


def test_reconstruction_takes_the_images_as_they_are(images: Tensor) -> None:
    inputs, targets = task("ir").transform(images, BatchRandom())
    assert inputs is images
    assert targets is images
    assert task("ir").clean_input
    assert not any(t.clean_input for name, t in build_tasks(TASKS).items() if name != "ir")


@pytest.mark.parametrize("sigma", [7 / 255, 0.4, 1.5, 2.0, 5.3])
def test_deblurring_blurs_as_scipy_does(sigma: float, images: Tensor) -> None:
    inputs, targets = task("bir", sigma=sigma).transform(images, BatchRandom())
    assert torch.equal(targets, images)
    for i in range(4):
        for channel in range(3):
            expected = gaussian_filter(
                images[i, channel].numpy(), sigma, mode="reflect", radius=math.ceil(4 * sigma)
            )
            np.testing.assert_allclose(inputs[i, channel].numpy(), expected, rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 12), st.integers(1, 9), st.integers(1, 9))
def test_blur_of_any_size_even_where_the_kernel_is_wider_than_the_image(
    sigma: float, height: int, width: int
) -> None:
    image = np.random.default_rng(height * 10 + width).random((height, width))
    expected = gaussian_filter(image, sigma, mode="reflect", radius=math.ceil(4 * sigma))
    found = blurred(torch.from_numpy(image)[None, None], sigma)[0, 0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)


def test_inpainting_whitens_the_central_8x8(images: Tensor) -> None:
    inputs, targets = task("inpaint").transform(images, BatchRandom())
    assert targets.shape == (4, 3, 8, 8)
    for i in range(4):
        for y in range(32):
            for x in range(32):
                if 12 <= y < 20 and 12 <= x < 20:
                    assert (inputs[i, :, y, x] == 1).all()
                    assert torch.equal(targets[i, :, y - 12, x - 12], images[i, :, y, x])
                else:
                    assert torch.equal(inputs[i, :, y, x], images[i, :, y, x])


def test_color_channel_guessing_is_undone_by_its_target(random: BatchRandom) -> None:
    images = many(40)
    inputs, targets = task("rgb").transform(images, random)
    orders = list(permutations(range(3)))
    for image, shuffled, target in zip(images, inputs, targets.tolist(), strict=True):
        for channel in range(3):
            assert torch.equal(shuffled[channel], image[orders[target][channel]])
    assert len(targets.unique()) == 6


def quarters(image: Array) -> list[Array]:
    h, w = image.shape[0] // 2, image.shape[1] // 2
    return [image[:h, :w], image[:h, w:], image[h:, :w], image[h:, w:]]


@pytest.mark.parametrize("shape", [(8, 8), (4, 10)])
def test_jigsaw_is_undone_by_its_target(
    shape: tuple[int, int], generator: torch.Generator, random: BatchRandom
) -> None:
    images = torch.rand(200, 3, *shape, generator=generator)
    inputs, targets = task("jigsaw").transform(images, random)
    orders = list(permutations(range(4)))
    for image, shuffled, target in zip(pictures(images), pictures(inputs), targets.tolist(), strict=True):
        for place, quarter in enumerate(orders[target]):
            assert np.array_equal(quarters(shuffled)[place], quarters(image)[quarter])
    assert len(targets.unique()) == 24


@pytest.mark.parametrize(
    ("name", "count", "options"), [("rgb", 6, {}), ("jigsaw", 24, {}), ("rotation", 4, {"views": 1})]
)
def test_all_classes_are_equally_likely(
    name: str, count: int, options: dict[str, float], random: BatchRandom
) -> None:
    _, targets = task(name, **options).transform(many(24_000, 2), random)
    expected = 24_000 / count
    chi_squared = float(((targets.bincount(minlength=count) - expected) ** 2 / expected).sum())
    assert chi_squared < count - 1 + 5 * (2 * (count - 1)) ** 0.5


# --- CIELAB ---------------------------------------------------------------------------------------------

colors = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 30), st.just(3)),
    elements=st.one_of(
        st.floats(0, 1, width=32), st.sampled_from([0.0, 1.0, np.float32(0.04045), np.float32(0.5)])
    ),
)
corners = np.array(
    [(r, g, b) for r in (0, 1) for g in (0, 1) for b in (0, 1)]
    + [(v, v, v) for v in (0.003, 0.04044, 0.04045, 0.04046, 0.0928, 0.0929, 0.5)],
    np.float32,
)


@settings(max_examples=80, deadline=None)
@given(colors)
@example(corners)
def test_lab_and_its_bins(rgb: Array) -> None:
    images = torch.from_numpy(rgb.T.copy())[None, :, None]  # (1, 3, 1, n)
    lab = rgb_to_lab(images)
    assert lab.dtype == torch.float32
    expected = rgb2lab(rgb.astype(np.float64)[None])[0]
    np.testing.assert_allclose(lab[0, :, 0].T.numpy(), expected, rtol=0, atol=1e-3)
    _, targets = task("color").transform(images, BatchRandom())
    assert 0 <= int(targets.min()) <= int(targets.max()) <= 31
    position = (expected[:, 1:] + 128) / 8
    inside = np.abs(position - np.round(position)) > 1e-3 / 8
    assert np.array_equal(targets[0, :, 0].T.numpy()[inside], np.floor(position)[inside])


def test_srgb_reaches_the_range_of_bins_that_the_docstring_gives() -> None:
    levels = np.linspace(0, 1, 18)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    lab = rgb_to_lab(torch.from_numpy(cube).permute(0, 2, 1)[:, :, None])[0, :, 0]
    low, high = lab.amin(1).tolist(), lab.amax(1).tolist()
    assert low == pytest.approx([0, -86.2, -107.9], abs=0.1)
    assert high == pytest.approx([100, 98.3, 94.5], abs=0.1)


# --- Losses ---------------------------------------------------------------------------------------------


def cross_entropy(scores: Array, target: int) -> float:
    shifted = scores - scores.max()
    return float(np.log(np.exp(shifted).sum()) - shifted[target])


@pytest.mark.parametrize(("name", "classes"), [("rotation", 4), ("rgb", 6), ("jigsaw", 24)])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_classification_losses(name: str, classes: int, scale: float, generator: torch.Generator) -> None:
    outputs = torch.randn(12, classes, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(classes, (12,), generator=generator)
    expected = np.mean([cross_entropy(outputs[i].numpy(), int(targets[i])) for i in range(12)])
    assert float(task(name, scale=scale).loss(outputs, targets)) == pytest.approx(scale * expected, rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_color_loss(scale: float, generator: torch.Generator) -> None:
    """1 / (2 N_pixel) Σ CE_A + CE_B per image (section 3), then the mean over the batch."""
    outputs = torch.randn(3, 64, 4, 5, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(32, (3, 2, 4, 5), generator=generator)
    total = 0.0
    for i in range(3):
        for y in range(4):
            for x in range(5):
                scores = outputs[i, :, y, x].numpy()
                ce_a = cross_entropy(scores[:32], int(targets[i, 0, y, x]))
                ce_b = cross_entropy(scores[32:], int(targets[i, 1, y, x]))
                total += (ce_a + ce_b) / (2 * 4 * 5)
    loss = task("color", scale=scale).loss(outputs, targets)
    assert float(loss) == pytest.approx(scale * total / 3, rel=1e-12)
    channels_last = outputs.to(memory_format=torch.channels_last)
    assert float(task("color", scale=scale).loss(channels_last, targets)) == pytest.approx(
        float(loss), rel=1e-12
    )


@pytest.mark.parametrize("name", ["ir", "bir", "inpaint"])
def test_pixel_losses(name: str, generator: torch.Generator) -> None:
    outputs, targets = torch.rand(2, 3, 3, 4, 5, generator=generator, dtype=torch.float64)
    squares = [
        (a - b) ** 2 for a, b in zip(outputs.flatten().tolist(), targets.flatten().tolist(), strict=True)
    ]
    mean = sum(squares) / len(squares)
    assert float(task(name).loss(outputs, targets)) == pytest.approx(30 * mean, rel=1e-12)
    assert float(task(name, scale=1.0).loss(outputs, targets)) == pytest.approx(mean, rel=1e-12)


# --- Pictures of what the network says --------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float64, (2, 3, 3, 4), elements=st.floats(-60, 110)))
def test_lab_to_rgb_as_scikit_image_does_also_where_srgb_has_no_such_color(lab: Array) -> None:
    lab[:, 0] = np.abs(lab[:, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of colors with a negative Z
        expected = lab2rgb(lab, channel_axis=1)
    found = lab_to_rgb(torch.from_numpy(lab)).numpy()
    inside = ((expected > 0) & (expected < 1)).all(1, keepdims=True)
    np.testing.assert_allclose(np.where(inside, found, 0), np.where(inside, expected, 0), atol=2e-5)
    assert found.min() >= 0
    assert found.max() <= 1


def test_lab_to_rgb_is_the_inverse(images: Tensor) -> None:
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(images)), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["rotation", "rgb", "jigsaw"])
def test_the_right_class_gives_the_original_and_another_one_does_not(name: str, images: Tensor) -> None:
    built = task(name)
    inputs, targets = built.transform(images, BatchRandom(torch.Generator().manual_seed(2)))
    shown = built.picture(inputs, F.one_hot(targets, len(built.answers)).double())
    assert shown is not None
    assert torch.equal(shown, images.repeat(len(inputs) // 4, 1, 1, 1))
    for wrong in range(1, len(built.answers)):
        said = (targets + wrong) % len(built.answers)
        shown = built.picture(inputs, F.one_hot(said, len(built.answers)).double())
        assert shown is not None
        assert not (shown == images.repeat(len(inputs) // 4, 1, 1, 1)).flatten(1).all(1).any()


def test_what_the_answers_mean(images: Tensor) -> None:
    assert task("rotation").answers == ("0°", "90°", "180°", "270°")
    rgb, jigsaw = task("rgb"), task("jigsaw")
    red, green, blue = images.unbind(1)
    parts = dict(zip("RGB", (red, green, blue), strict=True))
    inputs, targets = rgb.transform(images, BatchRandom(torch.Generator().manual_seed(2)))
    for i in range(4):
        expected = torch.stack([parts[letter][i] for letter in rgb.answers[int(targets[i])]])
        assert torch.equal(inputs[i], expected)
    inputs, targets = jigsaw.transform(images, BatchRandom(torch.Generator().manual_seed(2)))
    corners = [(slice(y, y + 16), slice(x, x + 16)) for y in (0, 16) for x in (0, 16)]
    for i in range(4):
        for place, digit in enumerate(jigsaw.answers[int(targets[i])]):
            assert torch.equal(
                inputs[(i, slice(None), *corners[place])], images[(i, slice(None), *corners[int(digit) - 1])]
            )


def test_the_right_colors_give_nearly_the_original(images: Tensor) -> None:
    built = task("color")
    inputs, targets = built.transform(images, BatchRandom())
    outputs = F.one_hot(targets, 32).permute(0, 1, 4, 2, 3).flatten(1, 2).double()
    shown = built.picture(inputs, outputs)
    assert shown is not None
    lab = np.concatenate([rgb2lab(pictures(inputs))[..., :1], pictures(targets) * 8.0 - 124], axis=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(pictures(shown), lab2rgb(lab), atol=2e-4)
    assert float((shown - images).abs().mean()) < 0.06


def test_pictures_of_the_others(images: Tensor) -> None:
    hole = task("inpaint")
    inputs, targets = hole.transform(images, BatchRandom())
    assert torch.equal(hole.picture(inputs, targets), images)  # type: ignore[arg-type]
    gray = torch.full_like(targets, 0.5)
    shown = hole.picture(inputs, gray)
    assert shown is not None
    assert (shown[..., 12:20, 12:20] == 0.5).all()
    assert float((shown != images).float().mean()) <= (8 / 32) ** 2
    for name in ("ir", "bir"):
        assert task(name).picture(images, 1 - images).equal(1 - images)  # type: ignore[union-attr]


# --- What every task keeps to ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_inputs_are_images_of_the_same_kind_and_the_originals_stay(name: str) -> None:
    rounded = torch.randint(2, (5, 3, 32, 32), generator=torch.Generator().manual_seed(3)).float()
    for images in (many(5, 32), rounded, torch.zeros(2, 3, 32, 32), torch.ones(2, 3, 32, 32)):
        before = images.clone()
        inputs, targets = task(name).transform(images, BatchRandom(torch.Generator().manual_seed(0)))
        assert torch.equal(images, before)
        assert inputs.dtype == images.dtype
        assert inputs.shape[1:] == images.shape[1:]
        assert len(inputs) == len(targets)
        assert len(inputs) % len(images) == 0
        assert float(inputs.min()) >= 0
        assert float(inputs.max()) <= 1 + 1e-6
        if targets.is_floating_point():
            assert float(targets.min()) >= 0
            assert float(targets.max()) <= 1


@pytest.mark.parametrize("name", TASKS)
def test_a_generator_decides_everything(name: str) -> None:
    images, state = many(30), torch.get_rng_state()
    first, again, other = (
        task(name).transform(images, BatchRandom(torch.Generator().manual_seed(seed))) for seed in (4, 4, 5)
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    if name in PAPER:
        assert torch.equal(first[1], other[1]) == (name not in ("rgb", "jigsaw"))
    assert torch.equal(torch.get_rng_state(), state), "the global random state must stay"


@pytest.mark.parametrize("name", TASKS)
def test_gradients_reach_the_features_and_the_whole_head(name: str) -> None:
    torch.manual_seed(0)
    inputs, targets = task(name).transform(many(4, 32), BatchRandom(torch.Generator().manual_seed(0)))
    features = torch.randn(len(inputs), 32, requires_grad=True)
    head = task(name).head(32)
    loss = task(name).loss(head(features), targets)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    loss.backward()
    assert features.grad is not None
    assert (features.grad.abs().sum(1) > 0).all()
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()


@pytest.mark.parametrize("name", TASKS)
def test_works_on_the_meta_device(name: str) -> None:
    """Nothing in a transform or a loss waits for the device or brings a CPU tensor in."""
    built = task(name)
    inputs, targets = built.transform(torch.empty(4, 3, 32, 32, device="meta"), BatchRandom())
    loss = built.loss(built.head(16).to("meta")(torch.empty(len(inputs), 16, device="meta")), targets)
    assert loss.device.type == inputs.device.type == targets.device.type == "meta"


@pytest.mark.parametrize("name", TASKS)
def test_float64_and_channels_last_give_the_same(name: str) -> None:
    images = many(6, 32, torch.float64)
    plain, last, single = (
        task(name).transform(x, BatchRandom(torch.Generator().manual_seed(0)))
        for x in (images, images.to(memory_format=torch.channels_last), images.float())
    )
    torch.testing.assert_close(last[0], plain[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last[1], plain[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(single[0].double(), plain[0], rtol=0, atol=1e-6)


# --- The registry ---------------------------------------------------------------------------------------


def refusal(call: Callable[[], object]) -> str:
    """The message with which `call` is refused: a UserError of one short line."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 300
    return message


def test_tasks_are_built_in_order_with_their_options() -> None:
    built = build_tasks(["bir", "rotation"], {"bir": {"sigma": 2.0, "scale": 3}, "ir": {"scale": 9}})
    assert list(built) == ["bir", "rotation"]
    assert vars(built["bir"]) == {"scale": 3, "sigmoid": True, "hidden": False, "sigma": 2.0}
    assert built["rotation"].scale == 1.0
    assert build_tasks([]) == {}
    assert [t.title for t in build_tasks(PAPER).values()] == [
        "Rotation",
        "Coloring",
        "Image reconstruction",
        "Image deblurring",
        "Inpainting",
        "Color-channel guessing",
        "Jigsaw puzzle",
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["rotaton"], "did you mean 'rotation'?"),
        (["colour"], "did you mean 'color'?"),
        (["rotation", "jigsaw", "rotation"], "task 'rotation' is named twice"),
        (["irr"], "did you mean 'ir'?"),
        (["zzz"], "choose from rotation, color, ir, bir, inpaint, rgb, jigsaw"),
        ([""], "choose from"),
        (["Rotation"], "did you mean 'rotation'?"),
        (["line\nbreak"], "unknown task"),
        (["x" * 5000], "unknown task"),
        ([5], "unknown task"),
        ([None], "unknown task"),
        ([True], "unknown task"),
    ],
)
def test_unknown_and_repeated_names(names: list[Any], message: str) -> None:
    assert message in refusal(lambda: check_task_names(names))
    assert message in refusal(lambda: build_tasks(names))
    if len(names) == 1:
        assert message in refusal(lambda: build_tasks(["rotation"], {names[0]: {}}))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bir", {"sigmaa": 1.0}, "task 'bir' has no option 'sigmaa': it takes scale, sigmoid, hidden, sigma"),
        ("rotation", {"sigma": 1.0}, "no option 'sigma'"),
        ("bir", {"line\nbreak": 1.0}, "no option"),
        ("bir", {5: 1.0}, "no option"),
        ("bir", {"x" * 5000: 1.0}, "no option"),
        ("bir", {"sigma": -1.0}, "option 'sigma'"),
        ("bir", {"sigma": 0}, "option 'sigma'"),
        ("bir", {"sigma": math.nan}, "option 'sigma'"),
        ("bir", {"sigma": math.inf}, "option 'sigma'"),
        ("bir", {"sigma": 1e30}, "option 'sigma'"),
        ("bir", {"sigma": 1e-300}, "option 'sigma'"),
        ("bir", {"sigma": 10**400}, "option 'sigma'"),
        ("bir", {"sigma": 1 << 20_000}, "option 'sigma'"),
        ("bir", {"sigma": "1"}, "option 'sigma'"),
        ("bir", {"sigma": "a\nb"}, "option 'sigma'"),
        ("bir", {"sigma": True}, "option 'sigma'"),
        ("bir", {"sigma": None}, "option 'sigma'"),
        ("bir", {"sigma": [1.0]}, "option 'sigma'"),
        ("rotation", {"views": 3}, "task_options of 'rotation': expected 1, 2 or 4 views, got 3"),
        ("rotation", {"views": 1.5}, "expected 1, 2 or 4 views, got 1.5"),
        ("rotation", {"views": True}, "option 'views': expected a number"),
        ("ir", {"hidden": 1}, "expected true or false"),
        ("ir", {"hidden": "yes"}, "expected true or false"),
        ("ir", {"sigmoid": None}, "expected true or false"),
        ("ir", 5, "expected a mapping"),
        ("ir", None, "expected a mapping"),
        ("ir", "scale\n" * 2000, "expected a mapping"),
        ("ir", ["scale"], "expected a mapping"),
    ],
)
def test_wrong_options(name: str, options: Any, message: str) -> None:
    assert message in refusal(lambda: build_tasks([name], {name: options}))


@pytest.mark.parametrize("name", TASKS)
def test_every_registered_task_is_whole(name: str) -> None:
    built = task(name)
    assert isinstance(built, Task)
    assert built == task(name)
    assert all(isinstance(value, int | float | bool) for value in built.options().values())
    assert built.options() == vars(built)
    assert built.title[0].isupper()


def test_a_new_task_is_one_class_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from rsslcli.core.tasks.rotation import Rotation

    monkeypatch.setitem(registry.TASKS, "other", f"{Rotation.__module__}:{Rotation.__name__}")
    assert type(build_tasks(["other"])["other"]) is Rotation


def test_names_options_and_help_need_no_torch() -> None:
    """What `rssl --help` imports stays fast: none of it imports torch, NumPy's heavy company included."""
    modules = [
        "rsslcli.core.tasks.registry",
        "rsslcli.core.config",
        "rsslcli.core.corruptions.names",
        "rsslcli.app",
    ]
    code = (
        "import sys\nfor name in sys.argv[1:]:\n __import__(name)\n assert 'torch' not in sys.modules, name"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
