"""The model of the demonstration: a classifier of handwritten digits.

Trained there and then on the UCI optical recognition data that scikit-learn
ships: 1,797 images of 8 by 8 pixels. Nothing is downloaded.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

ROWS = COLUMNS = 8


@dataclass(frozen=True)
class Digits:
    """Images as `float32` in 0 to 1, 64 values each, and what they show."""

    training_images: np.ndarray
    training_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load() -> Digits:
    data = load_digits()
    images = (data.data / 16).astype(np.float32)
    training_images, test_images, training_labels, test_labels = train_test_split(
        images, data.target, test_size=0.25, random_state=7, stratify=data.target
    )
    return Digits(training_images, training_labels, test_images, test_labels)


def train(digits: Digits, hidden: tuple[int, ...], iterations: int, seed: int) -> MLPClassifier:
    classifier = MLPClassifier(hidden_layer_sizes=hidden, max_iter=iterations, random_state=seed)
    with warnings.catch_warnings():
        # It stops after `iterations` rounds on purpose: good enough, and quick.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(digits.training_images, digits.training_labels)


def export(classifier: MLPClassifier, path: Path) -> None:
    """Writes `classifier` as ONNX: `image` [n, 64] in, `label` and `probabilities` out."""
    model = to_onnx(
        classifier,
        initial_types=[("image", FloatTensorType([None, ROWS * COLUMNS]))],
        options={"zipmap": False},
    )
    path.write_bytes(model.SerializeToString())


def run_plain(path: Path, image: np.ndarray, prepacking: bool) -> tuple[int, np.ndarray]:
    """What plain ONNX Runtime says of one image: the label and ten probabilities.

    Its default is to copy weights into another layout ("prepacking"), whose
    sums round differently. Occlude does not, so as not to hold them twice.
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_prepacking", "0" if prepacking else "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    label, probabilities = session.run(["label", "probabilities"], {"image": image})
    return int(label[0]), probabilities[0]
