"""The model card of an exported classifier: what it was trained on, how good it is, how to feed it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsslcli.core.errors import sanitize
from rsslcli.core.evaluation.calibration import read_temperature
from rsslcli.core.evaluation.files import evaluation_path, read_evaluation
from rsslcli.core.evaluation.fingerprint import fingerprint_weights
from rsslcli.core.evaluation.outcome import METRICS
from rsslcli.core.evaluation.result import Evaluation
from rsslcli.core.files import read_json, replacing, write_json
from rsslcli.core.networks.network import Network
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.plain_yaml import dump_yaml
from rsslcli.core.weights.checkpoint import Checkpoint
from rsslcli.core.weights.export import preprocessing, size_for

#: What a card says where nothing was recorded.
UNKNOWN = "unknown"


def describe_model(
    path: Path, network: Network, checkpoint: Path, trained: Checkpoint | None
) -> tuple[dict[str, Any], Evaluation | None]:
    """Collect what is known of a classifier; None stands for what is not.

    Args:
        path: the exported file.
        network: the classifier.
        checkpoint: the file that it was loaded from, beside which its evaluation and calibration are.
        trained: what that file says, if it is a checkpoint of rssl.

    Returns:
        The content of the card, and its evaluation.
    """
    weights = fingerprint_weights(network)
    step = trained.step if trained else None
    result = evaluation_of(evaluation_path(checkpoint), weights, step) if trained else None
    card = {
        "model": path.name,
        "architecture": _architecture(network, trained),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "weights": weights,
        "license": read_json(card_path(path)).get("license"),
        "classes": list(network.classes) or None,
        "preprocessing": preprocessing(path, size_for(network)),
        "temperature": read_temperature(checkpoint, weights, network.temperature),
        "training": None if trained is None else _training(trained),
        "evaluation": None if result is None else json.loads(result.to_json()),
    }
    return card, result


def _architecture(network: Network, trained: Checkpoint | None) -> str:
    if isinstance(network, WideResNet):
        return f"WRN-{network.depth}-{network.width}"
    return trained.config.network if trained else UNKNOWN


def _training(trained: Checkpoint) -> dict[str, Any]:
    lambdas = dict(zip(trained.config.weighted, trained.lambdas.tolist(), strict=True))
    data = {"train_data": trained.train_data, "validation_data": trained.validation_data}
    return {"settings": trained.config.to_dict(), "steps": trained.step, "lambdas": lambdas, **data}


def evaluation_of(path: Path, weights: str, step: int | None) -> Evaluation | None:
    """The unadapted accuracies in a file of an evaluation; None unless it is whole and of these weights.

    Evaluations by older versions name the number of training steps, and no weights.
    """
    content = read_evaluation(path)
    if content is None or content.get("weights", weights) != weights or content.get("step") != step:
        return None
    keys = ("dataset", "precision", "test_data", "corrupted_data", "corrupted_origin")
    about: dict[str, Any] = {key: sanitize(content[key]) for key in keys if key in content}
    means = {name: content.get(f"mean_{name}") for name in METRICS}
    about |= {f"mean_{name}": mean for name, mean in means.items() if isinstance(mean, float)}
    notes = content.get("notes")
    return Evaluation(
        content["clean_accuracy"],
        content["clean_images"],
        content["accuracy"],
        content["images"],
        tuple(content["excluded"]),
        about,
        tuple(sanitize(note, 400) for note in notes) if isinstance(notes, list) else (),
    )


def card_path(path: Path) -> Path:
    """The card of an exported file as JSON: its name and ".json"; the Markdown has ".md"."""
    return path.with_name(f"{path.name}.json")


def write_card(path: Path, card: Mapping[str, Any], result: Evaluation | None) -> list[Path]:
    """Write the card beside the exported file, as JSON and Markdown, and return the two paths.

    Raises:
        RsslError: a file cannot be written.
    """
    places = [card_path(path), path.with_name(f"{path.name}.md")]
    write_json(places[0], card)
    with replacing(places[1]) as file:
        file.write(to_markdown(card, result).encode())
    return places


def to_markdown(card: Mapping[str, Any], result: Evaluation | None) -> str:
    """Format a card for people."""
    sections = {
        f"# Model card: {sanitize(card['model'])}": _about_model(card),
        "## Input and output": _about_input(card),
        "## Training": _about_training(card["training"]),
        "## Accuracy under corruption": _about_accuracy(result),
    }
    return "\n".join(f"{heading}\n\n{text.strip()}\n" for heading, text in sections.items())


def _about_model(card: Mapping[str, Any]) -> str:
    classes = ", ".join(map(sanitize, card["classes"])) if card["classes"] else UNKNOWN
    return f"""
- architecture: {card["architecture"]}, {card["parameters"]:,} parameters
- classes, in the order of the scores: {classes}
- license: {sanitize(card["license"]) if card["license"] else "to be filled in by the author"}
- fingerprint of the weights (sha256): {card["weights"]}
"""


def _about_input(card: Mapping[str, Any]) -> str:
    rows = [
        f"- {name}: {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in card["preprocessing"].items()
    ]
    temperature = card["temperature"]
    confidence = (
        "no temperature was fitted, so the probabilities are not calibrated"
        if temperature is None
        else f"divide the scores by the temperature {temperature:.6g} first, which was fitted on clean images"
    )
    return "\n".join([*rows, f"- output: a score per class; softmax makes them probabilities; {confidence}"])


def _about_training(training: Mapping[str, Any] | None) -> str:
    if training is None:
        return f"{UNKNOWN}: the weights were not trained by rssl, or their file does not say how."
    settings = training["settings"]
    size = "all" if settings["train_size"] is None else f"{settings['train_size']:,}"
    lambdas = ", ".join(f"{sanitize(name)} {value:.4g}" for name, value in training["lambdas"].items())
    return f"""
- data: {size} training images of {sanitize(settings["dataset"])}, seed {settings["seed"]}
- steps: {training["steps"]:,}
- task weights λ at the end: {lambdas or "none, no tasks"}

```yaml
{dump_yaml(settings).strip()}
```
"""


def _about_accuracy(result: Evaluation | None) -> str:
    if result is None:
        return f"{UNKNOWN}: no whole evaluation of these weights was found beside them (`rssl eval-c`)."
    origin = result.about.get("corrupted_origin", UNKNOWN)
    dataset = result.about.get("dataset", UNKNOWN)
    means = [
        f"{name} {result.about[f'mean_{name}']:.4g}" for name in METRICS if f"mean_{name}" in result.about
    ]
    return f"""
In percent, without adaptation, on {dataset}; origin of the corrupted set: {origin}.

{result.to_markdown()}- calibration, means over the cells without a temperature: {", ".join(means) or UNKNOWN}
"""
