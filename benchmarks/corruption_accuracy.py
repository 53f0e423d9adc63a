"""Does a classifier find our corrupted images as hard as the original's?

    python benchmarks/corruption_accuracy.py GOLDEN.npz CHECKPOINT

GOLDEN.npz holds clean images, labels and, by corruption, the original generator's images of the five
severities. Each cell of the table is the accuracy on ours minus that on the original's, in points. Ours are
made with several seeds. A cell is marked * where the difference exceeds twice its standard error, which comes
from the differences image by image; of the 55 cells of random corruptions, chance alone marks about 3.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from rsslcli.core.corruptions.generate import corrupt
from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.data.augment import to_float
from rsslcli.core.errors import RsslError
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.weights.checkpoint import load_classifier


@torch.inference_mode()
def right(network: WideResNet, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which images, uint8 (N, H, W, 3), the network gets right by their labels (N,): float (N,), 0 or 1."""
    scores = network(to_float(torch.from_numpy(np.ascontiguousarray(images))))
    return (scores.argmax(1).numpy() == labels).astype(float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("golden", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    try:
        network, _ = load_classifier(options.checkpoint)
        golden = np.load(options.golden)
    except (RsslError, OSError, ValueError) as error:
        parser.error(str(error))
    if missing := [name for name in ("clean", "labels", *CORRUPTIONS) if name not in golden]:
        parser.error(f"{options.golden} holds no {', '.join(missing)}")
    clean, labels = golden["clean"], golden["labels"]
    print(f"clean accuracy {100 * right(network, clean, labels).mean():.1f}% of {len(labels)} images")
    print(f"{'corruption':<20}" + "".join(f"{severity:>9}" for severity in SEVERITIES))
    marked, differences = 0, []
    for name in CORRUPTIONS:
        cells = []
        for severity in SEVERITIES:
            original = right(network, golden[name][severity - 1], labels)
            ours = np.mean(
                [
                    right(network, corrupt(clean, name, severity, seed=seed), labels)
                    for seed in range(options.seeds)
                ],
                axis=0,
            )
            difference = ours - original
            error = difference.std(ddof=1) / np.sqrt(len(labels))
            beyond = abs(difference.mean()) > 2 * error
            marked += beyond
            differences.append(difference.mean())
            cells.append(f"{100 * difference.mean():+8.1f}{'*' if beyond else ' '}")
        print(f"{name:<20}" + "".join(cells))
    mean, spread = 100 * np.mean(differences), 100 * np.std(differences)
    print(f"{marked} of {len(differences)} cells beyond two standard errors")
    print(f"mean difference {mean:+.2f} points, standard deviation over the cells {spread:.2f}")


if __name__ == "__main__":
    main()
