"""A misinformation model, and the owner's with it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper

from occlude.guard._network import Network, append_layers
from occlude.guard._run import run

#: Before the names of what is added to the owner's graph.
PREFIX = "occlude_guard/"


@dataclass(frozen=True)
class Misinformation:
    """A network of two layers on one tensor of the owner's model, its *trunk*."""

    #: The tensor that it takes: the owner's features, or the model's input.
    trunk: str
    #: The owner's output with the right probabilities.
    answers: str
    #: Weights and biases, one layer after the other; the first layer scales its input too.
    layers: tuple[tuple[np.ndarray, np.ndarray], ...] = field(repr=False)
    #: What its output is called.
    output: str = PREFIX + "misinformation"

    def probabilities(self, trunk: np.ndarray) -> np.ndarray:
        """Its answers, rows of probabilities, to rows of the trunk."""
        rows = trunk.reshape(len(trunk), -1).astype(np.float64)
        return Network(self.layers).probabilities(rows)

    def answer(self, model: onnx.ModelProto, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The owner's answers and these, to rows of the model's input."""
        right, trunk = run(model, rows, [self.answers, self.trunk])
        return right, self.probabilities(trunk)

    def attach(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The owner's model with this one's answers as one more output.

        The trunk is computed once for both.
        """
        merged = onnx.ModelProto()
        merged.CopyFrom(model)
        graph = merged.graph
        if any(output.name == self.output for output in graph.output):
            raise ValueError(f"the model has an output {self.output} already: it was guarded before")
        answers = [output for output in graph.output if output.name == self.answers]
        if not answers:
            raise ValueError(f"the model has no output {self.answers}")
        kind = answers[0].type.tensor_type.elem_type
        flat = PREFIX + "flat"
        graph.node.append(helper.make_node("Flatten", [self.trunk], [flat], axis=1))
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        append_layers(graph, self.layers, flat, self.output, PREFIX, dtype)
        shape = [None, int(self.layers[-1][1].shape[0])]
        graph.output.append(helper.make_tensor_value_info(self.output, kind, shape))
        onnx.checker.check_model(merged)
        return merged


#: Types of answers that a guard can change.
NUMBERS = (TensorProto.FLOAT, TensorProto.DOUBLE)
