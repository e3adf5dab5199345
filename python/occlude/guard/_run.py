"""Runs an owner's model, on the owner's machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

#: Rows at a time, so that a data set need not fit into memory as activations.
BATCH = 256


def run(model: onnx.ModelProto, rows: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
    """The values of ``outputs``, any tensors of the graph, for each row of the only input."""
    name = input_of(model)
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    known = {output.name for output in graph.graph.output}
    for output in outputs:
        if output not in known:
            graph.graph.output.append(onnx.ValueInfoProto(name=output))
    evaluate = _evaluator(graph, name, outputs)
    batches = [evaluate(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]
    return [np.concatenate([batch[place] for batch in batches]) for place in range(len(outputs))]


def input_of(model: onnx.ModelProto) -> str:
    """The name of the only input that a request gives."""
    given = {initializer.name for initializer in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in given]
    if len(names) != 1:
        raise ValueError(f"the model takes {len(names)} inputs ({', '.join(names)}): one is known")
    return str(names[0])


def _evaluator(
    model: onnx.ModelProto, name: str, outputs: Sequence[str]
) -> Callable[[np.ndarray], list[np.ndarray]]:
    def by(run: Callable[..., Any]) -> Callable[[np.ndarray], list[np.ndarray]]:
        return lambda rows: list(run(list(outputs), {name: rows}))

    try:
        # Some of its releases report their use over the network.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        return by(ReferenceEvaluator(model).run)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return by(session.run)
