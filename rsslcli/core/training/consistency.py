"""The consistency loss of AugMix (Hendrycks et al., ICLR 2020): all views of an image should look alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: An image and two augmented views of it.
VIEWS = 3


def jensen_shannon(scores: Tensor) -> Tensor:
    """The Jensen-Shannon divergence between the predictions for several views of each image.

    Args:
        scores: float (3 · N, classes); the views of image i are i, i + N and i + 2 · N.

    Returns:
        The mean over the images, a scalar in [0, log 3]: the mean over the views of
        KL(p_view ‖ p_mean), where p_mean is clamped at 1e-7 as in the authors' code. Probabilities are
        computed in float32 at least: in half precision their logarithms overflow.
    """
    precise = torch.promote_types(scores.dtype, torch.float32)
    log_p = F.log_softmax(scores, 1, dtype=precise).view(VIEWS, -1, scores.shape[1])  # (3, N, classes)
    p = log_p.exp()
    log_mean = p.mean(0).clamp(1e-7, 1).log()
    divergence: Tensor = (p * (log_p - log_mean)).sum(2).mean()
    return divergence
