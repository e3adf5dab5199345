"""Small networks in NumPy, trained by descent on whatever loss their logits have."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import helper, numpy_helper

#: Adam's usual numbers (Kingma and Ba, 2015).
MOMENTUM, VARIANCE, TINY = 0.9, 0.999, 1e-8

BATCH = 64

#: Mean loss of rows of logits, and its slopes by them; `chosen` says which rows.
Loss = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


class Network:
    """Layers of weights and biases, rectified between."""

    def __init__(self, layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self.layers = list(layers)

    @classmethod
    def drawn(cls, sizes: Sequence[int], random: np.random.Generator) -> Network:
        """One that learned nothing yet."""
        return cls(
            [
                (random.normal(0, np.sqrt(2 / size), (size, following)), np.zeros(following))
                for size, following in zip(sizes, sizes[1:])
            ]
        )

    def logits(self, rows: np.ndarray) -> np.ndarray:
        return self._values(rows)[-1]

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        return softmax(self.logits(rows))

    def fit(
        self,
        rows: np.ndarray,
        loss: Loss,
        *,
        epochs: int,
        rate: float,
        random: np.random.Generator,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> None:
        """Descends with Adam. ``progress`` hears of each epoch, of how many, and the loss."""
        parameters = [array for layer in self.layers for array in layer]
        moments = [(np.zeros_like(array), np.zeros_like(array)) for array in parameters]
        step = 0
        for epoch in range(epochs):
            losses = []
            order = random.permutation(len(rows))
            for at in range(0, len(order), BATCH):
                chosen = order[at : at + BATCH]
                of_batch, gradients = self.gradients(rows[chosen], lambda z: loss(z, chosen))
                losses.append(of_batch)
                step += 1
                for array, gradient, (first, second) in zip(parameters, gradients, moments):
                    first += (1 - MOMENTUM) * (gradient - first)
                    second += (1 - VARIANCE) * (gradient**2 - second)
                    ahead = first / (1 - MOMENTUM**step)
                    array -= rate * ahead / (np.sqrt(second / (1 - VARIANCE**step)) + TINY)
            if progress is not None:
                progress(epoch + 1, epochs, float(np.mean(losses)))

    def gradients(
        self, rows: np.ndarray, loss: Callable[[np.ndarray], tuple[float, np.ndarray]]
    ) -> tuple[float, list[np.ndarray]]:
        """Of a loss of the logits, by each layer's weights and biases in turn."""
        values = self._values(rows)
        of_rows, slopes = loss(values[-1])
        gradients: list[np.ndarray] = []
        for place in reversed(range(len(self.layers))):
            gradients = [values[place].T @ slopes, slopes.sum(axis=0), *gradients]
            if place > 0:
                slopes = (slopes @ self.layers[place][0].T) * (values[place] > 0)
        return of_rows, gradients

    def slopes_of_input(self, rows: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """What slopes of the logits are by the input."""
        values = self._values(rows)
        for place in reversed(range(len(self.layers))):
            slopes = slopes @ self.layers[place][0].T
            if place > 0:
                slopes = slopes * (values[place] > 0)
        return slopes

    def _values(self, rows: np.ndarray) -> list[np.ndarray]:
        """What goes into each layer, and the logits."""
        values = [rows]
        for place, (weights, biases) in enumerate(self.layers):
            sums = values[-1] @ weights + biases
            last = place + 1 == len(self.layers)
            values.append(sums if last else np.maximum(sums, 0))
        return values


def cross_entropy(targets: np.ndarray) -> Loss:
    """To rows of probabilities."""

    def loss(logits: np.ndarray, chosen: np.ndarray) -> tuple[float, np.ndarray]:
        found, wanted = softmax(logits), targets[chosen]
        entropy = -(wanted * np.log(found + 1e-12)).sum(axis=1).mean()
        return float(entropy), (found - wanted) / len(wanted)

    return loss


def reverse_cross_entropy(labels: np.ndarray) -> Loss:
    """``-log(1 - g_t)``: least where the label is thought impossible."""

    def loss(logits: np.ndarray, chosen: np.ndarray) -> tuple[float, np.ndarray]:
        wrong, targets = softmax(logits), labels[chosen]
        rows = np.arange(len(targets))
        of_target = wrong[rows, targets]
        # 1 - g_t, by the others' sum: where g_t is 1 to rounding, they still differ from 0.
        of_others = np.maximum(wrong.sum(axis=1) - of_target, 1e-12)
        # d/dz_j of -log(1 - g_t) is g_t for j = t, and -g_t g_j / (1 - g_t) for every other.
        slopes = -wrong * (of_target / of_others)[:, None]
        slopes[rows, targets] = of_target
        return float(-np.log(of_others).mean()), slopes / len(targets)

    return loss


def append_layers(
    graph: onnx.GraphProto,
    layers: Sequence[tuple[np.ndarray, np.ndarray]],
    value: str,
    output: str,
    prefix: str,
    dtype: DTypeLike,
) -> None:
    """Appends layers to a graph, from a value of rows to ``output``, their probabilities."""
    for place, (weights, biases) in enumerate(layers):
        weights_name, biases_name, sums = (
            f"{prefix}{part}_{place}" for part in ("weights", "biases", "sums")
        )
        for name, array in ((weights_name, weights), (biases_name, biases)):
            graph.initializer.append(numpy_helper.from_array(array.astype(dtype), name))
        graph.node.append(helper.make_node("Gemm", [value, weights_name, biases_name], [sums]))
        value = sums
        if place + 1 < len(layers):
            value = f"{prefix}rectified_{place}"
            graph.node.append(helper.make_node("Relu", [sums], [value]))
    graph.node.append(helper.make_node("Softmax", [value], [output], axis=-1))
