"""An ordinary Triton client against a proxy, compared with plain ONNX Runtime.

Usage: unmodified_client.py HOST:PORT MODEL.onnx MODEL_ID

Nothing in here knows of Occlude. Exits 0 if every answer equals the plain model's.
"""

import sys

import numpy
import onnxruntime
import tritonclient.http


def main() -> None:
    address, path, model = sys.argv[1:]
    plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = plain.get_inputs()[0].name
    output = plain.get_outputs()[0].name
    client = tritonclient.http.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
    assert client.get_model_metadata(model)["inputs"][0]["name"] == name
    random = numpy.random.default_rng(7)
    for batch in (1, 3, 16):
        for binary in (True, False):
            values = random.standard_normal((batch, 64)).astype(numpy.float32)
            tensor = tritonclient.http.InferInput(name, values.shape, "FP32")
            tensor.set_data_from_numpy(values, binary_data=binary)
            wanted = [tritonclient.http.InferRequestedOutput(output, binary_data=binary)]
            answer = client.infer(model, [tensor], outputs=wanted).as_numpy(output)
            expected = plain.run([output], {name: values})[0]
            numpy.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)
    print("6 answers equal plain ONNX Runtime's")


main()
