"""Asks a watermarked model through a proxy, makes two suspects, and writes the inputs.

`copy.onnx` learned the answers by heart (the nearest input's label), `honest.onnx` did the same
with the model's own answers, from ONNX Runtime, which never went through the guard."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import tritonclient.http as triton
from onnx import TensorProto, helper

folder, address = Path(sys.argv[1]), sys.argv[2]
random = np.random.default_rng(0)
session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
name = session.get_inputs()[0].name
inputs = random.random((1500, 64), dtype=np.float32)
inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
(own,) = session.run(None, {name: inputs})

client = triton.InferenceServerClient(address)


def ask(rows):
    tensor = triton.InferInput(name, list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return client.infer("classifier", [tensor]).as_numpy(session.get_outputs()[0].name)


found = np.concatenate([ask(inputs[at : at + 100]) for at in range(0, len(inputs), 100)])
changed = found.argmax(axis=1) != own.argmax(axis=1)
# One in ten, give or take four standard deviations.
assert 104 <= changed.sum() <= 196, changed.sum()
# The same numbers in other places, and nothing else is touched.
np.testing.assert_allclose(np.sort(found), np.sort(own), atol=1e-5)
np.testing.assert_allclose(found[~changed], own[~changed], atol=1e-5)
# Whoever asks again, alone, gets the same.
for at in np.flatnonzero(changed)[:10]:
    np.testing.assert_allclose(ask(inputs[at : at + 1])[0], found[at], atol=1e-5)


def nearest(labels, path):
    nodes = [
        helper.make_node("MatMul", ["rows", "known"], ["closeness"]),
        helper.make_node("ArgMax", ["closeness"], ["nearest"], axis=1, keepdims=0),
        helper.make_node("Gather", ["labels", "nearest"], ["label"]),
    ]
    constants = [
        onnx.numpy_helper.from_array(np.ascontiguousarray(inputs.T), "known"),
        onnx.numpy_helper.from_array(labels.astype(np.int64), "labels"),
    ]
    graph = helper.make_graph(
        nodes,
        "nearest",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", inputs.shape[1]])],
        [helper.make_tensor_value_info("label", TensorProto.INT64, ["n"])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / path)


nearest(found.argmax(axis=1), "copy.onnx")
nearest(own.argmax(axis=1), "honest.onnx")
# Some twice: that is no more evidence.
twice = np.concatenate([np.arange(len(inputs)), np.arange(200)])
np.savez(folder / "candidates.npz", **{name: inputs[twice]})
np.save(folder / "labels.npy", found.argmax(axis=1)[twice])
np.save(folder / "rows.npy", found[twice])
np.save(folder / "fewer.npy", found)
