"""Writes a classifier of handwritten digits, and data to guard it with, into a folder."""

import sys
from pathlib import Path

import numpy as np
import onnx
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

folder = Path(sys.argv[1])
digits = load_digits()
inputs = (digits.data / 16).astype(np.float32)
known, held, labels, held_labels = train_test_split(
    inputs, digits.target, test_size=0.3, random_state=0
)
random = np.random.default_rng(0)
noise = random.random((1500, 64), dtype=np.float32) * random.random((1500, 1), dtype=np.float32)
# Few rounds: a classifier that is not sure of everything.
classifier = MLPClassifier((32,), max_iter=150, random_state=0)
classifier.fit(known, labels)
model = to_onnx(classifier, known[:1], options={"zipmap": False})
onnx.save(model, folder / "digits.onnx")
np.savez(folder / "known.npz", inputs=known, labels=labels, outliers=noise[:1000])
np.savez(folder / "held-out.npz", inputs=held, labels=held_labels, outliers=noise[1000:])
