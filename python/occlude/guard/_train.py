"""Trains a misinformation model."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import onnx

from occlude.guard import _torch
from occlude.guard._misinformation import NUMBERS, Misinformation
from occlude.guard._network import Network, reverse_cross_entropy
from occlude.guard._run import input_of, run

#: What trains: PyTorch where it is installed, or one of the two.
BACKENDS = ("auto", "numpy", "torch")


def train(
    model: str | os.PathLike[str] | onnx.ModelProto,
    inputs: np.ndarray,
    labels: np.ndarray,
    outliers: np.ndarray,
    *,
    output: str | None = None,
    trunk: str | None = None,
    hidden: int = 64,
    epochs: int = 40,
    rate: float = 1e-3,
    seed: int = 0,
    backend: str = "auto",
    progress: Callable[[int, int, float], None] | None = None,
) -> Misinformation:
    """Fits a model that is wrong: it minimises ``-log(1 - g_t(x))`` (reverse cross-entropy), on
    the owner's inputs with their labels and on outliers with the owner's own answers.

    ``inputs`` and ``outliers`` are rows of the model's input, ``labels`` classes from 0 on.
    ``output`` is the output with the probabilities, by default the last one that is of
    floating point. ``trunk`` is a tensor of the model that holds features of an input, such
    as what its last layer takes: what comes before is computed once for both models. By
    default it is the input. ``backend`` is ``"numpy"``, ``"torch"`` or ``"auto"``: PyTorch where
    it is installed, on a GPU where there is one. ``progress`` hears of each epoch, of how many,
    and the loss.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: found {backend!r}, expected one of {', '.join(BACKENDS)}")
    with_torch = backend != "numpy" and _torch.is_installed()
    if backend == "torch" and not with_torch:
        raise ValueError("backend: torch is not installed: pip install torch, or use numpy")
    loaded = model if isinstance(model, onnx.ModelProto) else onnx.load(model)
    answers = output or answers_of(loaded)
    trunk = trunk or input_of(loaded)
    right, features = run(loaded, np.concatenate([inputs, outliers]), [answers, trunk])
    _check(right, labels, len(inputs))
    targets = np.concatenate([labels, right[len(inputs) :].argmax(axis=1)]).astype(np.int64)
    features = features.reshape(len(features), -1).astype(np.float64)
    # Scaled, so that one rate fits every model; the first layer takes it over.
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-6
    random = np.random.default_rng(seed)
    network = Network.drawn([features.shape[1], hidden, right.shape[1]], random)
    rows = (features - mean) / deviation
    if with_torch:
        _torch.fit_wrong(
            network, rows, targets, epochs=epochs, rate=rate, seed=seed, progress=progress
        )
    else:
        loss = reverse_cross_entropy(targets)
        network.fit(rows, loss, epochs=epochs, rate=rate, random=random, progress=progress)
    (weights, biases), last = network.layers
    weights = weights / deviation[:, None]
    return Misinformation(trunk, answers, ((weights, biases - mean @ weights), last))


def answers_of(model: onnx.ModelProto) -> str:
    """The last output that can be probabilities, but for those of a misinformation model."""
    names = [
        output.name
        for output in model.graph.output
        if output.type.tensor_type.elem_type in NUMBERS and output.name != Misinformation.output
    ]
    if not names:
        raise ValueError("the model has no output of single or double precision: name output=")
    return str(names[-1])


def _check(right: np.ndarray, labels: np.ndarray, count: int) -> None:
    if right.ndim != 2 or right.shape[1] < 2:
        raise ValueError(f"the answers have the shape {right.shape}, expected rows of probabilities")
    if not np.allclose(right.sum(axis=1), 1, atol=0.02):
        raise ValueError("the answers are not probabilities: name the output behind the softmax")
    if labels.shape != (count,) or labels.min() < 0 or labels.max() >= right.shape[1]:
        raise ValueError(f"expected {count} labels from 0 to {right.shape[1] - 1}")
