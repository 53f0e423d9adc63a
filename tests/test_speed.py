"""`benchmarks/speed.py`: the rivals' meta-gradients are right."""

from __future__ import annotations

from dataclasses import replace

import baselines
import pytest
import torch
import variants

TINY = variants.Setting(depth=10, width=1, batch_size=8, images=20, device="cpu")


@pytest.mark.parametrize("batch_norm", ["per-task", "joint"])
def test_the_textbook_meta_gradient_is_ours_in_float64(batch_norm: str) -> None:
    trainer, problem = variants._trainer(TINY, variants.TASKS, batch_norm)
    trainer.step(0, trainer.epoch_order(0)[:8])
    problem = replace(problem, lambdas=torch.full_like(problem.lambdas, 0.5)).to(torch.float64)
    torch.testing.assert_close(
        baselines.textbook(problem), baselines.ours(problem, beta=1e-3), rtol=1e-8, atol=0
    )
