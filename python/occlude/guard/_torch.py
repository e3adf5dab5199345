"""Training a misinformation model with PyTorch: on a GPU where there is one."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from occlude.guard._network import BATCH, Network


def is_installed() -> bool:
    return importlib.util.find_spec("torch") is not None


def fit_wrong(
    network: Network,
    rows: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    rate: float,
    seed: int,
    progress: Callable[[int, int, float], None] | None = None,
) -> None:
    """Descends with Adam on ``-log(1 - g_t)``, as :meth:`Network.fit` does on
    :func:`reverse_cross_entropy`, and leaves what it found in ``network``."""
    torch = importlib.import_module("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.from_numpy(rows.astype(np.float32)).to(device)
    targets = torch.from_numpy(labels.astype(np.int64)).to(device)
    layers = [
        [torch.from_numpy(array.astype(np.float32)).to(device).requires_grad_() for array in layer]
        for layer in network.layers
    ]
    descent = torch.optim.Adam([array for layer in layers for array in layer], lr=rate)
    for epoch in range(epochs):
        total = 0.0
        batches = torch.randperm(len(inputs), generator=generator).to(device).split(BATCH)
        for chosen in batches:
            loss = reverse_cross_entropy(logits(inputs[chosen], layers), targets[chosen])
            descent.zero_grad()
            loss.backward()
            descent.step()
            total += loss.detach().item()
        if progress is not None:
            progress(epoch + 1, epochs, total / len(batches))
    network.layers = [
        (weights.detach().cpu().double().numpy(), biases.detach().cpu().double().numpy())
        for weights, biases in layers
    ]


def logits(rows: Any, layers: Sequence[Sequence[Any]]) -> Any:
    """Of tensors, with layers rectified between."""
    for place, (weights, biases) in enumerate(layers):
        rows = rows @ weights + biases
        if place + 1 < len(layers):
            rows = rows.relu()
    return rows


def reverse_cross_entropy(found: Any, targets: Any) -> Any:
    """The mean of ``-log(1 - g_t)`` of logits, computed from the others: where ``g_t`` is 1 to
    rounding, they still differ from 0."""
    others = found.scatter(1, targets[:, None], float("-inf"))
    return (found.logsumexp(dim=1) - others.logsumexp(dim=1)).mean()
