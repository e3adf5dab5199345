#!/usr/bin/env python3
"""Writes the node tests of the `onnx` package where the conformance run looks for them.

    scripts/node-tests.py [FOLDER]

The package makes these tests in Python and ships no files. They are written in
the layout that ONNX publishes: NAME/model.onnx and
NAME/test_data_set_0/{input,output}_N.pb, with a data.json of `rtol` and `atol`
where a test does not use the runner's usual ones. Tensors are written with
their values in `raw_data`, whatever the test used. Random inputs come from a
fixed seed, so the same package gives the same files. Nothing is done where the
folder holds them already.
"""

import argparse
import json
import os
import pathlib
import shutil
import sys
import warnings

import numpy as np
import onnx
from onnx import numpy_helper

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# Part of the stamp: raise it when this script writes something else.
FORMAT = 1
# The tolerances of `onnx.backend.test`, where a test does not say otherwise.
USUAL_TOLERANCES = (1e-3, 1e-7)


def main() -> int:
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", nargs="?", type=pathlib.Path, default=target / "node-tests")
    folder = arguments.parse_args().folder

    expected = f"onnx {onnx.__version__}, numpy {np.__version__}, format {FORMAT}\n"
    stamp = folder / "stamp"
    if stamp.is_file() and stamp.read_text() == expected:
        return 0
    if folder.exists() and not stamp.is_file() and any(folder.iterdir()):
        print(f"{folder} holds something else", file=sys.stderr)
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    # The package's own test cases overflow on purpose.
    warnings.simplefilter("ignore")
    cases = node_cases()
    for case in cases:
        write(case, folder / case.name)
    stamp.write_text(expected)
    print(f"{folder}: {len(cases)} node tests of onnx {onnx.__version__}", file=sys.stderr)
    return 0


def node_cases() -> list:
    # Cases are made, random inputs included, while their modules are imported.
    np.random.seed(0)
    from onnx.backend.test.loader import load_model_tests

    return load_model_tests(kind="node")


def write(case, folder: pathlib.Path) -> None:
    """Writes one test; every node test of the package has exactly one data set."""
    ((inputs, outputs),) = case.data_sets
    data = folder / "test_data_set_0"
    data.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(case.model.SerializeToString())
    if (case.rtol, case.atol) != USUAL_TOLERANCES:
        tolerances = {"rtol": case.rtol, "atol": case.atol}
        (folder / "data.json").write_text(json.dumps(tolerances))
    graph = case.model.graph
    for role, declared, values in (("input", graph.input, inputs), ("output", graph.output, outputs)):
        for index, (value_info, value) in enumerate(zip(declared, values, strict=True)):
            message = encode(value_info, value)
            (data / f"{role}_{index}.pb").write_bytes(message.SerializeToString())


def encode(declared: onnx.ValueInfoProto, value):
    kind = declared.type.WhichOneof("value")
    if kind == "tensor_type":
        return tensor(value, declared.name)
    if kind == "sequence_type":
        return sequence(value, declared.name)
    if kind == "optional_type":
        optional = onnx.OptionalProto(name=declared.name)
        if isinstance(value, list):
            optional.elem_type = onnx.OptionalProto.SEQUENCE
            optional.sequence_value.CopyFrom(sequence(value, declared.name))
        elif value is not None:
            optional.elem_type = onnx.OptionalProto.TENSOR
            optional.tensor_value.CopyFrom(tensor(value, declared.name))
        return optional
    raise ValueError(f"{declared.name} is a {kind}, which no node test has had")


def sequence(values: list, name: str) -> onnx.SequenceProto:
    made = onnx.SequenceProto(name=name, elem_type=onnx.SequenceProto.TENSOR)
    made.tensor_values.extend(tensor(value, f"{name}/{index}") for index, value in enumerate(values))
    return made


def tensor(value, name: str) -> onnx.TensorProto:
    if isinstance(value, onnx.TensorProto):
        value = numpy_helper.to_array(value)
    return numpy_helper.from_array(np.asarray(value), name)


if __name__ == "__main__":
    sys.exit(main())
