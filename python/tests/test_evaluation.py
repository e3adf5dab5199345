"""Attackers, against models in memory."""

import unittest
from unittest import mock

import numpy as np

from occlude.guard._network import Network
from occlude.guard.evaluation import attackers, data
from occlude.guard.evaluation.__main__ import ExhaustedError, counted, under_names


def victim(sizes, seed=0):
    return Network.drawn(sizes, np.random.default_rng(seed))


class Attackers(unittest.TestCase):
    def test_none_asks_more_than_its_budget_and_each_gives_a_clone(self):
        network = victim([64, 8, 10])
        seeds = data.noise(150, np.random.default_rng(1))
        for attacker in [*attackers.ATTACKERS, attackers.EQUATIONS]:
            for budget in (100, 301):
                asked = []

                def ask(rows):
                    asked.append(len(rows))
                    return network.probabilities(rows)

                with mock.patch.object(attackers, "STEPS", 20):
                    random = np.random.default_rng(2)
                    clone = attacker.attack(counted(ask, budget), budget, seeds, random)
                self.assertEqual(clone.probabilities(seeds).shape, (150, 10), attacker.name)
                self.assertLessEqual(sum(asked), budget)
                # And nearly all of it, or the comparison would not be fair.
                self.assertGreater(sum(asked), budget - 3, attacker.name)

    def test_who_asks_more_is_stopped(self):
        ask = counted(lambda rows: rows, 10)
        ask(np.zeros((6, 1)))
        with self.assertRaisesRegex(RuntimeError, "2 rows more than its 10"):
            ask(np.zeros((6, 1)))

    def test_who_has_several_names_asks_as_each_until_it_has_no_more(self):
        asked = [0, 0, 0]

        def client(number, budget):
            def ask(rows):
                if asked[number] + len(rows) > budget:
                    raise ExhaustedError
                asked[number] += len(rows)
                return rows + number

            return ask

        ask = under_names([client(0, 20), client(1, 15), client(2, 10)], 10)
        answers = ask(np.zeros((40, 1)))
        self.assertEqual(answers.ravel().tolist(), [0] * 20 + [1] * 10 + [2] * 10)
        self.assertEqual(asked, [20, 10, 10])
        with self.assertRaises(ExhaustedError):
            ask(np.zeros((1, 1)))

    def test_equations_have_the_logistic_regression_as_their_solution(self):
        network = victim([64, 10], seed=3)
        random = np.random.default_rng(4)
        clone = attackers.equations(network.probabilities, 100, None, random)
        rows = data.noise(50, random)
        np.testing.assert_allclose(
            clone.probabilities(rows), network.probabilities(rows), atol=1e-6
        )


class Data(unittest.TestCase):
    def test_every_image_has_pixels_from_0_to_1_and_a_seed_decides_it(self):
        for draw in (data.letters, data.strokes, data.noise):
            one, other = (draw(20, np.random.default_rng(5)) for _ in range(2))
            np.testing.assert_array_equal(one, other)
            self.assertEqual((one.shape, one.dtype), ((20, 64), np.float32))
            self.assertTrue(0 <= one.min() and 0.2 < one.max() <= 1, draw.__name__)

    def test_digits_are_dealt_out_once(self):
        dealt = data.digits(np.random.default_rng(6))
        parts = [dealt.known, dealt.chosen_with, dealt.seeds, dealt.held_out]
        self.assertEqual([len(part) for part in parts], [950, 200, 150, 497])
        self.assertEqual(len(dealt.held_out), len(dealt.held_out_labels))


if __name__ == "__main__":
    unittest.main()
