"""Models to be attacked, each without a guard and with each defence alone and together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from occlude.guard import Guard, Misinformation, Outcome, Shaping, sweep, train
from occlude.guard._network import Network, append_layers, cross_entropy
from occlude.guard.evaluation.data import Digits
from occlude.guard.evaluation.outliers import SIDE, letters, noise, strangers

CLASSES = 10
INPUT, OUTPUT = "image", "probabilities"

#: Units between input and classes. The second is the larger network, the third has none: a
#: logistic regression, whose weights are the solution of equations.
SHAPES: dict[str, tuple[int, ...]] = {"digits": (128, 64), "large": (512, 512), "logistic": ()}

#: Thresholds of a sweep.
TAUS = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))

#: One answer in so many is changed where there is a watermark.
MARKED = 50

ROUNDED, LABELS = Shaping(decimals=1), Shaping(label_only=True)


@dataclass(frozen=True)
class Victim:
    """One model as it is served."""

    id: str
    #: Which network, and what defends it.
    network: str
    defence: str
    model: onnx.ModelProto
    guard: Guard | None
    #: Right answers to held-out digits, of the model alone.
    accuracy: float


@dataclass(frozen=True)
class Sweep:
    """What each threshold would do to one network."""

    network: str
    #: Whether it was trained with outliers.
    exposed: bool
    outcomes: list[Outcome]


def victims(data: Digits, random: np.random.Generator) -> tuple[list[Victim], list[Sweep]]:
    """All of them. Models that are guarded by misinformation were trained with outliers, as
    the paper has it; what that alone does is a defence of its own here. And what thresholds do
    to those, and to ones that were not."""
    outliers = np.concatenate([letters(1000, random), noise(1000, random)])
    strange = strangers(500, np.random.default_rng(13))
    found, sweeps = [], []
    for network, shape in SHAPES.items():
        plain = _trained(shape, data, None, random)
        found += [
            _victim(network, "none", plain, None, data),
            _victim(network, "rounded", plain, Guard(output=OUTPUT, shaping=ROUNDED), data),
            _victim(network, "labels", plain, Guard(output=OUTPUT, shaping=LABELS), data),
        ]
        if network == "digits":
            marked = Guard(output=OUTPUT, watermark=MARKED)
            found.append(_victim(network, "watermark", plain, marked, data))
        if not shape:
            continue
        exposed = _trained(shape, data, outliers, random)
        model = to_onnx(exposed)
        wrong = _wrong(model, data, outliers)
        tau = _threshold(wrong, model, data)
        for one, its_wrong, exposed_too in (
            (to_onnx(plain), _wrong(to_onnx(plain), data, outliers), False),
            (model, wrong, True),
        ):
            benign, others = (its_wrong.answer(one, rows) for rows in (data.held_out, strange))
            outcomes = sweep(benign, data.held_out_labels, others, taus=TAUS)
            sweeps.append(Sweep(network, exposed_too, outcomes))
        found += [
            _victim(network, "exposure", exposed, None, data),
            _victim(network, "misinformation", exposed, Guard(wrong, tau), data),
            _victim(network, "together", exposed, Guard(wrong, tau, shaping=LABELS), data),
        ]
    return found, sweeps


def to_onnx(network: Network) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [],
        "victim",
        [value(INPUT, TensorProto.FLOAT, [None, SIDE * SIDE])],
        [value(OUTPUT, TensorProto.FLOAT, [None, CLASSES])],
    )
    append_layers(graph, network.layers, INPUT, OUTPUT, "layer_", np.float32)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _trained(
    shape: tuple[int, ...],
    data: Digits,
    outliers: np.ndarray | None,
    random: np.random.Generator,
) -> Network:
    network = Network.drawn([SIDE * SIDE, *shape, CLASSES], random)
    rows, targets = data.known, np.eye(CLASSES)[data.known_labels]
    if outliers is not None:
        # Outlier exposure: on what is no digit, every class is as likely.
        rows = np.concatenate([rows, outliers])
        even = np.full((len(outliers), CLASSES), 1 / CLASSES)
        targets = np.concatenate([targets, even])
    loss = cross_entropy(targets)
    network.fit(rows.astype(np.float64), loss, epochs=60, rate=1e-3, random=random)
    return network


def _wrong(model: onnx.ModelProto, data: Digits, outliers: np.ndarray) -> Misinformation:
    known = (data.known, data.known_labels, outliers)
    # The same whatever is installed.
    return train(model, *known, output=OUTPUT, backend="numpy")


def _threshold(wrong: Misinformation, model: onnx.ModelProto, data: Digits) -> float:
    """The highest that changes no label of digits that nobody learned from. They are few: one
    that changed some would change more of what users ask."""
    benign = wrong.answer(model, data.chosen_with)
    outcomes = sweep(benign, data.chosen_with_labels, benign)
    return max(one.tau for one in outcomes if one.benign_kept == 1)


def _victim(
    network: str, defence: str, trained: Network, guard: Guard | None, data: Digits
) -> Victim:
    right = trained.probabilities(data.held_out).argmax(axis=1) == data.held_out_labels
    id = f"{network}-{defence}"
    return Victim(id, network, defence, to_onnx(trained), guard, float(right.mean()))
