"""Compares an unsealed model with the one that was sealed.

Usage: same_model.py ORIGINAL.onnx UNSEALED.onnx

Exits 0 if the ONNX checker accepts the second and both hold the same weights.
"""

import sys

import onnx
from onnx import numpy_helper


def weights(path: str) -> dict[str, bytes]:
    model = onnx.load(path)
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}


def main() -> None:
    original, unsealed = sys.argv[1:]
    onnx.checker.check_model(unsealed, full_check=True)
    assert weights(original) == weights(unsealed)
    assert onnx.load(original, load_external_data=False).graph.node == onnx.load(unsealed).graph.node


main()
