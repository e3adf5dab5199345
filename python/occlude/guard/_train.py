"""Trains a misinformation model."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import onnx

from occlude.guard._misinformation import NUMBERS, Misinformation, softmax
from occlude.guard._run import input_of, run

#: Adam's usual numbers (Kingma and Ba, 2015).
MOMENTUM, VARIANCE, TINY = 0.9, 0.999, 1e-8

BATCH = 64


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
    progress: Callable[[int, int, float], None] | None = None,
) -> Misinformation:
    """Fits a model that is wrong: it minimises ``-log(1 - g_t(x))`` (reverse cross-entropy), on
    the owner's inputs with their labels and on outliers with the owner's own answers.

    ``inputs`` and ``outliers`` are rows of the model's input, ``labels`` classes from 0 on.
    ``output`` is the output with the probabilities, by default the last one that is of
    floating point. ``trunk`` is a tensor of the model that holds features of an input, such
    as what its last layer takes: what comes before is computed once for both models. By
    default it is the input. ``progress`` hears of each epoch, of how many, and the loss.
    """
    loaded = model if isinstance(model, onnx.ModelProto) else onnx.load(model)
    answers = output or _answers_of(loaded)
    trunk = trunk or input_of(loaded)
    right, features = run(loaded, np.concatenate([inputs, outliers]), [answers, trunk])
    _check(right, labels, len(inputs))
    targets = np.concatenate([labels, right[len(inputs) :].argmax(axis=1)]).astype(np.int64)
    features = features.reshape(len(features), -1).astype(np.float64)
    # Scaled, so that one rate fits every model; the first layer takes it over.
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-6
    random = np.random.default_rng(seed)
    sizes = [features.shape[1], hidden, right.shape[1]]
    layers = [
        [random.normal(0, np.sqrt(2 / size), (size, following)), np.zeros(following)]
        for size, following in zip(sizes, sizes[1:])
    ]
    _descend(layers, (features - mean) / deviation, targets, epochs, rate, random, progress)
    (weights, biases), last = layers
    weights = weights / deviation[:, None]
    first = (weights, biases - mean @ weights)
    return Misinformation(trunk, answers, (first, (last[0], last[1])))


def _descend(layers, features, targets, epochs, rate, random, progress) -> None:
    """Adam on the reverse cross-entropy, in place."""
    parameters = [array for layer in layers for array in layer]
    moments = [(np.zeros_like(array), np.zeros_like(array)) for array in parameters]
    step = 0
    for epoch in range(epochs):
        losses = []
        order = random.permutation(len(features))
        for at in range(0, len(order), BATCH):
            chosen = order[at : at + BATCH]
            loss, gradients = _gradients(layers, features[chosen], targets[chosen])
            losses.append(loss)
            step += 1
            for array, gradient, (first, second) in zip(parameters, gradients, moments):
                first += (1 - MOMENTUM) * (gradient - first)
                second += (1 - VARIANCE) * (gradient**2 - second)
                ahead = first / (1 - MOMENTUM**step)
                array -= rate * ahead / (np.sqrt(second / (1 - VARIANCE**step)) + TINY)
        if progress is not None:
            progress(epoch + 1, epochs, float(np.mean(losses)))


def _gradients(layers, features, targets):
    (weights, biases), (last_weights, last_biases) = layers
    hidden = np.maximum(features @ weights + biases, 0)
    wrong = softmax(hidden @ last_weights + last_biases)
    rows = np.arange(len(targets))
    of_target = wrong[rows, targets]
    # 1 - g_t, by the others' sum: where g_t is 1 to rounding, they still differ from 0.
    of_others = np.maximum(wrong.sum(axis=1) - of_target, 1e-12)
    # d/dz_j of -log(1 - g_t) is g_t for j = t, and -g_t g_j / (1 - g_t) for every other.
    slopes = -wrong * (of_target / of_others)[:, None]
    slopes[rows, targets] = of_target
    slopes /= len(targets)
    back = (slopes @ last_weights.T) * (hidden > 0)
    gradients = [features.T @ back, back.sum(axis=0), hidden.T @ slopes, slopes.sum(axis=0)]
    return float(-np.log(of_others).mean()), gradients


def _answers_of(model: onnx.ModelProto) -> str:
    names = [
        output.name
        for output in model.graph.output
        if output.type.tensor_type.elem_type in NUMBERS
    ]
    if not names:
        raise ValueError("the model has no output of single or double precision: name output=")
    return names[-1]


def _check(right: np.ndarray, labels: np.ndarray, count: int) -> None:
    if right.ndim != 2 or right.shape[1] < 2:
        raise ValueError(f"the answers have the shape {right.shape}, expected rows of probabilities")
    if not np.allclose(right.sum(axis=1), 1, atol=0.02):
        raise ValueError("the answers are not probabilities: name the output behind the softmax")
    if labels.shape != (count,) or labels.min() < 0 or labels.max() >= right.shape[1]:
        raise ValueError(f"expected {count} labels from 0 to {right.shape[1] - 1}")
