"""Asks a model with budgets through a proxy until it is told to stop, and prints how many
answers came."""

import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

address, model, name, features = sys.argv[1:]
client = triton.InferenceServerClient(address)
rows = np.zeros((1, int(features)), np.float32)
tensor = triton.InferInput(name, list(rows.shape), "FP32")
tensor.set_data_from_numpy(rows)
answers = 0
try:
    while answers < 100:
        client.infer(model, [tensor])
        answers += 1
except InferenceServerException as refused:
    assert "your budget has 0 answers left" in str(refused), refused
print(answers)
