#!/usr/bin/env python3
"""Makes ONNX models of well-known architectures with random weights.

    scripts/models.py FOLDER [--batch N|any] [vgg16 resnet50 mobilenetv2 bert digits ...]

Speed and memory do not depend on what the weights are, so measurements need no
download. The architectures are those of the papers, in the form that exporters
write: batch normalisation already folded into the convolutions, Gelu spelled
out, opset 17. The same seed gives the same file. `digits` is the classifier of
the demonstration, which is trained.

Models over 2 GiB, which no protobuf can hold, have their weights in a file of
external data beside them. What is there and newer than this script stays.
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = pathlib.Path(__file__).resolve().parent.parent
OPSET = 17
IR_VERSION = 8
# What a protobuf may hold is 2 GiB; the graph needs some of it.
LARGEST_FILE = 2**31 - 2**24

# An extent of inputs and outputs: a number, or a name where any number will do.
Extent = int | str


class Graph:
    """Collects nodes and initializers; every method returns the name of its result."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, array: np.ndarray) -> str:
        name = f"initializer.{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def normal(self, shape: tuple[int, ...], deviation: float) -> str:
        values = self.random.standard_normal(shape, dtype=np.float32)
        return self.constant(values * np.float32(deviation))

    def scalar(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def apply(self, operator: str, *inputs: str, **attributes) -> str:
        name = f"{operator}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def convolution(
        self, x: str, channels: int, filters: int, size: int, stride: int = 1, groups: int = 1
    ) -> str:
        fan_in = channels // groups * size * size
        weights = self.normal((filters, channels // groups, size, size), math.sqrt(2 / fan_in))
        bias = self.normal((filters,), 0.01)
        return self.apply(
            "Conv", x, weights, bias,
            kernel_shape=[size, size], strides=[stride, stride], pads=[size // 2] * 4,
            dilations=[1, 1], group=groups,
        )

    def fully_connected(self, x: str, inputs: int, outputs: int) -> str:
        weights = self.normal((outputs, inputs), math.sqrt(1 / inputs))
        return self.apply("Gemm", x, weights, self.normal((outputs,), 0.01), transB=1)

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        product = self.apply("MatMul", x, self.normal((inputs, outputs), 0.02))
        return self.apply("Add", self.normal((outputs,), 0.01), product)

    def model(self, name: str, inputs: list[onnx.ValueInfoProto], result: str,
              shape: list[Extent]) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [result], ["output"], name="output"))
        outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)]
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.initializers)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
            producer_name="occlude",
        )


def image_input(batch: Extent) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 224, 224])]


def vgg16(batch: Extent) -> onnx.ModelProto:
    """Simonyan and Zisserman, 2014, configuration D: 528 MiB of weights."""
    graph, x, channels = Graph(), "input", 3
    for filters, repeats in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]:
        for _ in range(repeats):
            x = graph.apply("Relu", graph.convolution(x, channels, filters, 3))
            channels = filters
        x = graph.apply("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = graph.apply("Flatten", x, axis=1)
    x = graph.apply("Relu", graph.fully_connected(x, 512 * 7 * 7, 4096))
    x = graph.apply("Relu", graph.fully_connected(x, 4096, 4096))
    return graph.model(
        "vgg16", image_input(batch), graph.fully_connected(x, 4096, 1000), [batch, 1000]
    )


def resnet50(batch: Extent) -> onnx.ModelProto:
    """He et al., 2015, with the stride on the 3x3 convolution: 97 MiB."""
    graph = Graph()
    x = graph.apply("Relu", graph.convolution("input", 3, 64, 7, stride=2))
    x = graph.apply("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            y = graph.apply("Relu", graph.convolution(x, channels, width, 1))
            y = graph.apply("Relu", graph.convolution(y, width, width, 3, stride))
            y = graph.convolution(y, width, 4 * width, 1)
            if block == 0:
                x = graph.convolution(x, channels, 4 * width, 1, stride)
            x, channels = graph.apply("Relu", graph.apply("Add", y, x)), 4 * width
    x = graph.apply("Flatten", graph.apply("GlobalAveragePool", x), axis=1)
    return graph.model(
        "resnet50", image_input(batch), graph.fully_connected(x, 2048, 1000), [batch, 1000]
    )


def mobilenetv2(batch: Extent) -> onnx.ModelProto:
    """Sandler et al., 2018, width 1: 13 MiB."""
    graph = Graph()
    low, high = graph.scalar(0), graph.scalar(6)

    def relu6(x: str) -> str:
        return graph.apply("Clip", x, low, high)

    x, channels = relu6(graph.convolution("input", 3, 32, 3, stride=2)), 32
    for expansion, filters, repeats, first_stride in [
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ]:
        for repeat in range(repeats):
            stride, hidden, y = first_stride if repeat == 0 else 1, channels * expansion, x
            if expansion != 1:
                y = relu6(graph.convolution(y, channels, hidden, 1))
            y = relu6(graph.convolution(y, hidden, hidden, 3, stride, groups=hidden))
            y = graph.convolution(y, hidden, filters, 1)
            x = graph.apply("Add", x, y) if stride == 1 and channels == filters else y
            channels = filters
    x = relu6(graph.convolution(x, channels, 1280, 1))
    x = graph.apply("Flatten", graph.apply("GlobalAveragePool", x), axis=1)
    return graph.model(
        "mobilenetv2", image_input(batch), graph.fully_connected(x, 1280, 1000), [batch, 1000]
    )


def bert(batch: Extent, width: int = 768) -> onnx.ModelProto:
    """Devlin et al., 2018, base, 128 tokens, encoder output: 414 MiB."""
    tokens, heads, vocabulary = 128, width // 64, 30522
    graph = Graph()

    def normalize(x: str) -> str:
        scale, bias = graph.constant(np.ones(width, np.float32)), graph.normal((width,), 0.01)
        return graph.apply("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-12)

    def split_heads(x: str, permutation: list[int]) -> str:
        return graph.apply("Transpose", graph.apply("Reshape", x, by_head), perm=permutation)

    # Zero: as many as come in.
    first = batch if isinstance(batch, int) else 0
    by_head = graph.constant(np.array([first, tokens, heads, width // heads], np.int64))
    joined = graph.constant(np.array([first, tokens, width], np.int64))
    scale = graph.scalar(math.sqrt(width // heads))
    root, one, half = graph.scalar(math.sqrt(2)), graph.scalar(1), graph.scalar(0.5)

    words = graph.apply("Gather", graph.normal((vocabulary, width), 0.02), "input_ids", axis=0)
    x = normalize(graph.apply("Add", words, graph.normal((1, tokens, width), 0.02)))
    for _ in range(12):
        query = split_heads(graph.linear(x, width, width), [0, 2, 1, 3])
        key = split_heads(graph.linear(x, width, width), [0, 2, 3, 1])
        value = split_heads(graph.linear(x, width, width), [0, 2, 1, 3])
        scores = graph.apply("Div", graph.apply("MatMul", query, key), scale)
        context = graph.apply("MatMul", graph.apply("Softmax", scores, axis=-1), value)
        context = graph.apply("Transpose", context, perm=[0, 2, 1, 3])
        attended = graph.linear(graph.apply("Reshape", context, joined), width, width)
        x = normalize(graph.apply("Add", attended, x))

        hidden = graph.linear(x, width, 4 * width)
        error_function = graph.apply("Erf", graph.apply("Div", hidden, root))
        gated = graph.apply("Mul", hidden, graph.apply("Add", error_function, one))
        x = normalize(graph.apply(
            "Add", graph.linear(graph.apply("Mul", gated, half), 4 * width, width), x))
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [batch, tokens])]
    return graph.model("bert", inputs, x, [batch, tokens, width])


def wide_bert(batch: Extent) -> onnx.ModelProto:
    """As `bert`, 2,048 numbers for each token: 2.5 GiB."""
    return bert(batch, width=2048)


def save(model: onnx.ModelProto, path: pathlib.Path) -> None:
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights > LARGEST_FILE:
        data = path.name + ".data"
        path.with_name(data).unlink(missing_ok=True)
        onnx.save(model, path, save_as_external_data=True, location=data)
    else:
        onnx.save(model, path)
    # By its path: a model in memory cannot be checked beyond 2 GiB.
    onnx.checker.check_model(path)


def save_digits(path: pathlib.Path) -> None:
    sys.path.insert(0, str(ROOT / "demo"))
    import digits

    classifier = digits.train(digits.load(), hidden=(256, 128), iterations=40, seed=7)
    digits.export(classifier, path)


ARCHITECTURES: dict[str, Callable[[Extent], onnx.ModelProto]] = {
    "vgg16": vgg16, "resnet50": resnet50, "mobilenetv2": mobilenetv2, "bert": bert,
    "wide-bert": wide_bert,
}
# Without those that are only for trying out what size does.
BENCHMARKED = ["vgg16", "resnet50", "mobilenetv2", "bert", "digits"]
MODELS = [*ARCHITECTURES, "digits"]


def extent(argument: str) -> Extent:
    return "batch" if argument == "any" else int(argument)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--batch", type=extent, default=1, metavar="N|any",
                        help="examples in one request (default 1; digits takes any)")
    arguments = parser.parse_intermixed_args()
    unknown = set(arguments.models) - set(MODELS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")

    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.models or BENCHMARKED:
        path = arguments.folder / f"{name}.onnx"
        script = pathlib.Path(__file__).stat().st_mtime
        if path.exists() and path.stat().st_mtime > script:
            continue
        if name == "digits":
            save_digits(path)
        else:
            save(ARCHITECTURES[name](arguments.batch), path)
        files = [path, *path.parent.glob(path.name + ".data")]
        print(f"{path}: {sum(file.stat().st_size for file in files) / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
