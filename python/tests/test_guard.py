"""Training, merging and choosing a threshold; and sealing, if there is a program."""

import os
import subprocess
import tempfile
import tomllib
import unittest
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import occlude
from occlude.guard import (
    Budget,
    Budgets,
    Guard,
    Issuer,
    Outcome,
    Shaping,
    Telemetry,
    Work,
    share,
    sweep,
    train,
)
from occlude.guard import _torch
from occlude.guard._network import Network, cross_entropy, reverse_cross_entropy, softmax
from occlude.guard._plot import plot
from occlude.guard._run import run
from occlude.guard._sweep import mix

CLASSES, FEATURES = 3, 4


def blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points around one corner for each class."""
    random = np.random.default_rng(seed)
    labels = random.integers(CLASSES, size=count)
    points = np.eye(CLASSES, FEATURES)[labels] * 4 + random.normal(size=(count, FEATURES))
    return points.astype(np.float32), labels


def classifier() -> onnx.ModelProto:
    """Whoever is nearest to a corner is of its class."""
    weights = np.eye(FEATURES, CLASSES, dtype=np.float32)
    nodes = [
        helper.make_node("Relu", ["point"], ["features"]),
        helper.make_node("MatMul", ["features", "corners"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "classifier",
        [value("point", TensorProto.FLOAT, [None, FEATURES])],
        [value("probabilities", TensorProto.FLOAT, [None, CLASSES])],
        [numpy_helper.from_array(weights, "corners")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def trained(**options):
    inputs, labels = blobs(600, 1)
    outliers = np.random.default_rng(2).uniform(-4, 8, (600, FEATURES)).astype(np.float32)
    options = {"epochs": 20, "backend": "numpy"} | options
    return train(classifier(), inputs, labels, outliers, **options)


class Training(unittest.TestCase):
    def test_gradients_are_the_losses_own(self):
        random = np.random.default_rng(0)
        network = Network.drawn([4, 5, 3], random)
        features, labels = random.normal(size=(7, 4)), random.integers(3, size=7)
        targets = softmax(random.normal(size=(7, 3)))
        everything = np.arange(7)
        for kind in (reverse_cross_entropy(labels), cross_entropy(targets)):

            def loss(logits, kind=kind):
                return kind(logits, everything)

            _, gradients = network.gradients(features, loss)
            arrays = [array for layer in network.layers for array in layer]
            for array, gradient in zip(arrays, gradients):
                for place in np.ndindex(array.shape):
                    self.assertSlope(array, place, gradient, lambda: network.gradients(features, loss)[0])
            slopes = network.slopes_of_input(features, loss(network.logits(features))[1])
            for place in np.ndindex(features.shape):
                self.assertSlope(features, place, slopes, lambda: loss(network.logits(features))[0])

    def assertSlope(self, array, place, slopes, value):
        values = []
        for step in (1e-6, -1e-6):
            array[place] += step
            values.append(value())
            array[place] -= step
        self.assertAlmostEqual((values[0] - values[1]) / 2e-6, slopes[place], places=5)

    def test_it_is_wrong_where_the_model_is_right(self):
        inputs, labels = blobs(400, 3)
        for trunk in (None, "features"):
            right, wrong = trained(trunk=trunk).answer(classifier(), inputs)
            self.assertGreater((right.argmax(axis=1) == labels).mean(), 0.9)
            self.assertLess((wrong.argmax(axis=1) == labels).mean(), 0.05)

    def test_one_seed_gives_one_model(self):
        for (one, _), (other, _) in zip(trained(seed=5).layers, trained(seed=5).layers):
            np.testing.assert_array_equal(one, other)

    def test_what_cannot_be_trained_is_refused(self):
        inputs, labels = blobs(20, 1)
        model = classifier()
        model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, None))
        for options, reason in [
            ({"output": "logits"}, "not probabilities"),
            ({"labels": labels + 1}, "labels from 0 to 2"),
            ({"labels": labels[1:]}, "expected 20 labels"),
        ]:
            arguments = {"inputs": inputs, "labels": labels, "outliers": inputs} | options
            arguments.setdefault("output", "probabilities")
            with self.assertRaisesRegex(ValueError, reason):
                train(model, **arguments)


    def test_a_backend_that_is_none_or_not_there_is_refused(self):
        with self.assertRaisesRegex(ValueError, "found 'abacus', expected one of auto, numpy, torch"):
            trained(backend="abacus")
        with mock.patch.object(_torch, "is_installed", lambda: False):
            with self.assertRaisesRegex(ValueError, "torch is not installed"):
                trained(backend="torch")
            self.assertIsNotNone(trained(backend="auto", epochs=1))


@unittest.skipUnless(_torch.is_installed(), "PyTorch is not installed")
class TrainingWithTorch(unittest.TestCase):
    def test_its_loss_has_the_slopes_of_the_other(self):
        import torch

        random = np.random.default_rng(0)
        network = Network.drawn([4, 5, 3], random)
        rows, labels = random.normal(size=(7, 4)), random.integers(3, size=7)
        layers = [[torch.from_numpy(array.copy()) for array in layer] for layer in network.layers]
        arrays = [array.requires_grad_() for layer in layers for array in layer]
        found = _torch.logits(torch.from_numpy(rows), layers)
        np.testing.assert_allclose(found.detach().numpy(), network.logits(rows), atol=1e-12)
        loss = _torch.reverse_cross_entropy(found, torch.from_numpy(labels))
        loss.backward()
        kind = reverse_cross_entropy(labels)
        expected, gradients = network.gradients(rows, lambda z: kind(z, np.arange(7)))
        self.assertAlmostEqual(loss.item(), expected, places=10)
        for array, gradient in zip(arrays, gradients):
            np.testing.assert_allclose(array.grad.numpy(), gradient, atol=1e-10)

    def test_it_is_wrong_where_the_model_is_right(self):
        inputs, labels = blobs(400, 3)
        for backend in ("torch", "auto"):
            heard = []
            options = {"trunk": "features", "progress": lambda *said: heard.append(said)}
            right, wrong = trained(backend=backend, **options).answer(classifier(), inputs)
            self.assertGreater((right.argmax(axis=1) == labels).mean(), 0.9)
            self.assertLess((wrong.argmax(axis=1) == labels).mean(), 0.05)
            self.assertEqual([said[:2] for said in heard], [(at, 20) for at in range(1, 21)])
            self.assertLess(heard[-1][2], heard[0][2] / 2)


class Merging(unittest.TestCase):
    def test_the_merged_model_gives_both_answers(self):
        inputs, _ = blobs(50, 4)
        for trunk in (None, "features"):
            wrong = trained(trunk=trunk)
            merged = wrong.attach(classifier())
            expected = wrong.answer(classifier(), inputs)
            names = ["probabilities", wrong.output]
            for found in (
                ReferenceEvaluator(merged).run(names, {"point": inputs}),
                run(merged, inputs, names),
            ):
                for one, other in zip(found, expected):
                    np.testing.assert_allclose(one, other, atol=1e-5)

    def test_a_model_is_merged_once_and_only_where_the_answers_are(self):
        wrong = trained()
        with self.assertRaisesRegex(ValueError, "guarded before"):
            wrong.attach(wrong.attach(classifier()))
        other = classifier()
        other.graph.output[0].name = other.graph.node[2].output[0] = "others"
        with self.assertRaisesRegex(ValueError, "no output probabilities"):
            wrong.attach(other)


class Threshold(unittest.TestCase):
    def test_the_share_is_the_papers_also_at_the_extremes(self):
        certainty = np.array([0.499, 0.5, 0.501])
        # The logistic function of 1, 0 and -1.
        expected = [0.7310585786300049, 0.5, 0.2689414213699951]
        np.testing.assert_allclose(share(certainty, 0.5), expected, atol=1e-12)
        with np.errstate(all="raise", under="ignore"):
            for precision in (np.float32, np.float64):
                extremes = np.array([0.0, 1.0], dtype=precision)
                np.testing.assert_allclose(share(extremes, 0.5, 1e6), [1, 0], atol=1e-12)

    def test_a_higher_threshold_defends_more_and_keeps_less(self):
        right = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
        wrong = right[:, ::-1]
        labels = np.array([0, 0, 1])
        low, middle, high = sweep((right, wrong), labels, (right, wrong), taus=[0.1, 0.7, 0.95])
        self.assertEqual((low.benign_accuracy, low.outliers_kept), (1, 1))
        self.assertAlmostEqual(middle.benign_accuracy, 2 / 3)
        self.assertEqual((high.benign_kept, high.outliers_kept), (0, 0))
        np.testing.assert_allclose(mix(right, wrong, 0.0), right)


class Plots(unittest.TestCase):
    def test_each_threshold_is_a_point_at_its_place(self):
        outcomes = [
            Outcome(0.0, benign_accuracy=1.0, benign_kept=1.0, outliers_kept=1.0),
            Outcome(0.5, benign_accuracy=0.95, benign_kept=0.96, outliers_kept=0.25),
            Outcome(1.0, benign_accuracy=0.91, benign_kept=0.9, outliers_kept=0.0),
        ]
        drawn = ElementTree.fromstring(plot(outcomes))
        name = "{http://www.w3.org/2000/svg}"
        circles = drawn.findall(f"{name}circle")
        places = [(float(one.get("cx")), float(one.get("cy"))) for one in circles]
        # 528 by 308 between the margins of 56; the axis begins at 90%.
        self.assertEqual(places, [(56.0, 56.0), (452.0, 210.0), (584.0, 333.2)])
        told = [one.find(f"{name}title").text for one in circles]
        self.assertEqual(told, ["tau 0.00", "tau 0.50", "tau 1.00"])
        texts = [one.text for one in drawn.findall(f"{name}text")]
        for text in ("0%", "100%", "90%", "0.50", "outliers defended, by tau"):
            self.assertIn(text, texts)

    def test_labels_that_would_lie_on_each_other_are_left_out(self):
        outcomes = [Outcome(tau, 0.9, 0.9, 0.5) for tau in (0.1, 0.2, 0.3)]
        drawn = ElementTree.fromstring(plot(outcomes))
        texts = [one.text for one in drawn.iter("{http://www.w3.org/2000/svg}text")]
        self.assertEqual([text for text in texts if text.startswith("0.")], ["0.10"])
        with self.assertRaises(ValueError):
            plot([])


class Sealing(unittest.TestCase):
    def test_a_guards_file_says_what_the_guard_says(self):
        guard = Guard(trained(), tau=0.75, shaping=Shaping(top=2, decimals=3))
        self.assertEqual(
            tomllib.loads(guard.to_toml()),
            {
                "format": 1,
                "output": "probabilities",
                "misinformation": {
                    "output": "occlude_guard/misinformation",
                    "tau": 0.75,
                    "nu": 1000.0,
                },
                "shaping": {"top": 2, "decimals": 3},
            },
        )
        label = Guard(output='a "name"', shaping=Shaping(label_only=True))
        self.assertEqual(
            tomllib.loads(label.to_toml()),
            {"format": 1, "output": 'a "name"', "shaping": {"label-only": True}},
        )
        counted = Guard(
            output="p",
            watermark=200,
            budgets=Budgets(60, client=Budget(window=5, total=9), model=Budget(total=7)),
            telemetry=Telemetry(500, below=0.9, share=0.2, normality=0.91, throttle_seconds=60),
            work=Work(16, gain=5, most_bits=30),
            issuers=(Issuer("https://issuer.example", "-----BEGIN PUBLIC KEY-----\nabc\n"),),
        )
        self.assertEqual(
            tomllib.loads(counted.to_toml()),
            {
                "format": 1,
                "output": "p",
                "watermark": {"one-in": 200},
                "budgets": {
                    "window-seconds": 60,
                    "client": {"window": 5, "total": 9},
                    "model": {"total": 7},
                },
                "telemetry": {
                    "queries": 500,
                    "uncertain": {"below": 0.9, "share": 0.2},
                    "distances": {"normality": 0.91},
                    "throttle-seconds": 60,
                },
                "work": {"bits": 16, "gain": 5.0, "most-bits": 30},
                "issuers": [
                    {
                        "name": "https://issuer.example",
                        "key": "-----BEGIN PUBLIC KEY-----\nabc\n",
                    }
                ],
            },
        )

    def test_a_guard_without_a_meaning_is_refused(self):
        for options in ({}, {"tau": 0.5}, {"output": "p"}, {"shaping": Shaping(top=1)}):
            with self.assertRaises(ValueError):
                Guard(**options)
        for options in ({}, {"below": 0.5}, {"share": 0.5, "normality": 0.9}):
            with self.assertRaises(ValueError):
                Telemetry(100, **options)

    @unittest.skipUnless(os.environ.get("OCCLUDE_BINARY"), "OCCLUDE_BINARY names no program")
    def test_a_guarded_model_is_sealed_and_its_owner_reads_the_guard_back(self):
        program = os.environ["OCCLUDE_BINARY"]
        with tempfile.TemporaryDirectory() as folder:
            key, output = Path(folder, "owner.key"), Path(folder, "model.occ")
            subprocess.run([program, "keygen", "-o", key], check=True, capture_output=True)
            guard = Guard(trained(), tau=0.75)
            sealed = occlude.seal(classifier(), output, key, id="corners", version=3, guard=guard)
            self.assertEqual((sealed.id, sealed.version, sealed.path), ("corners", 3, output))
            inspected = subprocess.run(
                [program, "inspect", output, "--key", key], capture_output=True, text=True
            )
            self.assertIn('"misinformation":{"output":"occlude_guard/mis', inspected.stdout)
            with self.assertRaises(occlude.OccludeError) as refused:
                occlude.seal(classifier(), output, key)
            self.assertEqual(refused.exception.exit_code, 1)
            self.assertIn("model.occ", str(refused.exception))


if __name__ == "__main__":
    unittest.main()
