"""Asks a guarded model through a proxy, and compares with ONNX Runtime's own answers, mixed as
the paper has it (Kariyappa and Qureshi, CVPR 2020, equation 4)."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import tritonclient.http as triton

folder, address, tau = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
data = np.load(folder / "held-out.npz")
inputs = np.concatenate([data["inputs"], data["outliers"]])
wrong_name = "occlude_guard/misinformation"

session = onnxruntime.InferenceSession(str(folder / "guarded.onnx"))
name = session.get_inputs()[0].name
right, wrong = session.run(["probabilities", wrong_name], {name: inputs})
with np.errstate(over="ignore"):
    share = 1 / (1 + np.exp(1000 * (right.max(axis=1, keepdims=True).astype(np.float64) - tau)))
expected = (1 - share) * right + share * wrong
# Rounded to two decimals by the guard's shaping.
expected = np.floor(np.abs(expected) * 100 + 0.5) / 100

client = triton.InferenceServerClient(address)
metadata = client.get_model_metadata("digits")
assert [output["name"] for output in metadata["outputs"]] == ["probabilities"], metadata
told = {
    "guard": "misinformation+shaping",
    "answers_may_be_changed": True,
    "token_required": False,
    "queries_watched": False,
    "work_required": False,
}
assert metadata["parameters"] == told, metadata


def ask(rows, outputs=("probabilities",)):
    tensor = triton.InferInput(name, list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    wanted = [triton.InferRequestedOutput(output) for output in outputs]
    return client.infer("digits", [tensor], outputs=wanted or None).as_numpy("probabilities")


found = np.concatenate([ask(inputs[at : at + 50]) for at in range(0, len(inputs), 50)])
# The server's sums may differ in the last bits, and so round another way at a half.
difference = np.abs(found - expected)
assert difference.max() < 0.0101, difference.max()
assert (difference > 1e-6).mean() < 0.01, (difference > 1e-6).mean()
kept = found.argmax(axis=1) == right.argmax(axis=1)
changed = share[:, 0] > 0.5
assert changed.sum() > 30 and (~changed).sum() > 300, changed.sum()
assert kept[~changed].mean() > 0.98 and kept[changed].mean() < 0.05
assert np.array_equal(ask(inputs[:3], outputs=()), found[:3])


def refused(rows, why, outputs=("probabilities",)):
    try:
        ask(rows, outputs)
    except triton.InferenceServerException as error:
        assert why in str(error), error
    else:
        raise AssertionError(f"answered: {why}")


for hidden in ("label", wrong_name):
    refused(inputs[:1], f'no output "{hidden}", it has probabilities', ("probabilities", hidden))
for value in (np.nan, np.inf, -np.inf):
    row = inputs[:1].copy()
    row[0, 5] = value
    refused(row, "has values that are not finite")
# Finite, and too large for the model's own sums.
refused(np.full((1, 64), 3e38, np.float32), "no answer of finite numbers")
print(f"{len(inputs)} answers, {changed.sum()} of them changed")
