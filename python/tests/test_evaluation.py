"""Attackers, against models in memory."""

import unittest
from unittest import mock

import numpy as np

from occlude.guard._network import Network
from occlude.guard.evaluation import attackers, data, named, outliers
from occlude.guard.evaluation.clients import Client, ExhaustedError, counted, under_names


def victim(sizes, seed=0):
    return Network.drawn(sizes, np.random.default_rng(seed))


class Attackers(unittest.TestCase):
    def test_none_asks_more_than_its_budget_and_each_gives_a_clone(self):
        network = victim([64, 8, 10])
        seeds = outliers.noise(150, np.random.default_rng(1))
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
        rows = outliers.noise(50, random)
        np.testing.assert_allclose(
            clone.probabilities(rows), network.probabilities(rows), atol=1e-6
        )


class Limited(Client):
    """Has so many answers of each model."""

    def __init__(self, answers):
        self.left = {model: answers for model in ("telemetry", "work", "counted", "budgets")}
        self.network = victim([64, 8, 10])

    def _ask(self, model, rows):
        if len(rows) > self.left[model]:
            raise ExhaustedError(model)
        self.left[model] -= len(rows)
        return self.network.probabilities(rows)


def limited(answers):
    each = named.Named.__new__(named.Named)
    each.models = {model: model for model in ("telemetry", "work", "counted", "budgets")}
    each.of_each, each.batch = 100, 10
    each.clients = [Limited(one) for one in answers]
    return each


class Counted(unittest.TestCase):
    def setUp(self):
        self.digits = data.digits(np.random.default_rng(6))
        self.knockoff = attackers.ATTACKERS[0]
        self.rows = outliers.noise(200, np.random.default_rng(7))

    def askers(self):
        random = np.random.default_rng(8)
        honest = named.honest(self.digits, random)
        disguised = named.disguised(self.knockoff, self.rows, self.digits, random)
        return honest + disguised

    def test_the_same_queries_are_asked_in_every_disguise(self):
        plain, several, hidden = self.askers()[2:]
        self.assertEqual([len(one.rows) for one in (plain, several, hidden)], [1, 5, 1])
        self.assertEqual([one.queries for one in (plain, several, hidden)], [200, 200, 2000])
        asked = {row.tobytes() for row in self.rows}
        for one in (plain, several, hidden):
            found = [row.tobytes() for rows in one.rows for row in rows]
            self.assertEqual(len([row for row in found if row in asked]), 200)

    def test_who_is_stopped_learns_from_what_came_before(self):
        # Three honest ones, one attacker, the same under five names, and hidden.
        each = limited([497, 497, 300] + [95] + [40, 30, 20, 10, 0] + [1000])
        plain = Limited(10**6).of("counted")
        learned = []

        def copied(attacker, ask, budget, digits, seed):
            learned.append(len(ask(self.rows[:budget])))
            return 0.5

        with mock.patch.object(named, "copied", copied):
            entries = named.throttled(each, self.askers(), plain, self.digits, 0)
        found = [(one["who"], one["names"], one["answers"], one["accuracy"]) for one in entries]
        expected = [
            ("honest", 3, 497 + 497 + 300, None),
            ("knockoff", 1, 90, 0.5),
            ("knockoff", 5, 100, 0.5),
            ("knockoff, hidden", 1, 1000, 0.5),
        ]
        self.assertEqual(found, expected)
        self.assertEqual(learned, [90, 100, 100])

    def test_answers_are_timed_with_work_and_without(self):
        each = limited([10**6] * 7)
        entries = named.worked(each, self.askers())
        found = [(one["who"], one["names"], one["queries"]) for one in entries]
        expected = [("honest", 1, 497), ("knockoff", 1, 200), ("knockoff", 5, 200)]
        self.assertEqual(found, expected)
        self.assertTrue(all(one["seconds"] > 0 < one["seconds_without"] for one in entries))

    def test_more_names_than_there_are_is_an_error(self):
        with self.assertRaisesRegex(RuntimeError, "5 names are wanted, there are 4"):
            limited([1] * 4).dealt([2, 3])


class Data(unittest.TestCase):
    def test_every_image_has_pixels_from_0_to_1_and_a_seed_decides_it(self):
        for draw in (outliers.letters, outliers.photographs, outliers.strokes, outliers.noise):
            one, other = (draw(20, np.random.default_rng(5)) for _ in range(2))
            np.testing.assert_array_equal(one, other)
            self.assertEqual((one.shape, one.dtype), ((20, 64), np.float32))
            self.assertTrue(0 <= one.min() and 0.2 < one.max() <= 1, draw.__name__)

    def test_owners_have_other_fonts_than_who_asks(self):
        self.assertFalse(set(outliers.OWNED) & set(outliers.STRANGE))
        for fonts, styles in ((outliers.OWNED, 5), (outliers.STRANGE, 3)):
            glyphs = [glyph for font in fonts for glyph in outliers._glyphs(font)]
            self.assertEqual(len(glyphs), styles * len(outliers.LETTERS))
            # Each is drawn, and none is another one's or a box for what a font has not.
            self.assertEqual(len({(one.size, one.tobytes()) for one in glyphs}), len(glyphs))

    def test_digits_are_dealt_out_once(self):
        dealt = data.digits(np.random.default_rng(6))
        parts = [dealt.known, dealt.chosen_with, dealt.seeds, dealt.held_out]
        self.assertEqual([len(part) for part in parts], [950, 200, 150, 497])
        self.assertEqual(len(dealt.held_out), len(dealt.held_out_labels))


if __name__ == "__main__":
    unittest.main()
