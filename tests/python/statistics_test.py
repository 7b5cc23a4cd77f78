#!/usr/bin/env python3
"""The statistics of an evaluation compared with closed forms, enumeration by hand, and a small simulation."""

import math
import sys
import unittest
import warnings
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import evaluation_sources  # noqa: F401
from harp.evaluation.statistics import Comparison, compare, holm, minimum_detectable, relative_cost


def paired(both, losses, wins, neither):
    """Baseline and treatment with these four counts."""
    pairs = [(1, 1)] * both + [(1, 0)] * losses + [(0, 1)] * wins + [(0, 0)] * neither
    return ({str(id): pair[side] for id, pair in enumerate(pairs)} for side in (0, 1))


def comparison(p_value):
    return Comparison(10, 0, 0, 0, 0, 0, p_value, 0, 0, 10, None, None)


class Compare(unittest.TestCase):
    def test_mcnemar(self):
        for wins, losses, p_value in (
                (10, 2, 2 * (1 + 12 + 66) / 2**12), (2, 10, 2 * (1 + 12 + 66) / 2**12), (6, 0, 2 / 2**6), (5, 0, 2 / 2**5),
                (3, 3, 1.0), (0, 0, 1.0)):
            with self.subTest(wins=wins, losses=losses):
                found = compare(*paired(30, losses, wins, 50), binary=True)
                self.assertAlmostEqual(found.p_value, p_value, places=12)
                self.assertEqual((found.n, found.wins, found.losses, found.ties), (80 + wins + losses, wins, losses, 80))
                self.assertAlmostEqual(found.difference, (wins - losses) / found.n)
                self.assertAlmostEqual(found.treatment - found.baseline, found.difference)
                self.assertIsNone(found.seed_spread)

    def test_paired_by_id_not_by_order(self):
        baseline, treatment = {"a": 0.0, "b": 1.0, "c": 2.0}, {"c": 2.0, "a": 0.0, "b": 1.0}
        self.assertEqual(compare(baseline, treatment, binary=False).ties, 3)

    def test_permutation_by_hand(self):
        # The eight signs of 0.3, 0.2, 0.1 give the sums 0.6 0.4 0.2 0 0 -0.2 -0.4 -0.6: two of eight reach 0.4 on each side.
        found = compare(dict.fromkeys("abcd", 0.5), {"a": 0.8, "b": 0.7, "c": 0.4, "d": 0.5}, binary=False)
        self.assertAlmostEqual(found.p_value, 2 * 2 / 8)
        self.assertAlmostEqual(found.difference, 0.1)
        self.assertEqual((found.wins, found.losses, found.ties), (2, 1, 1))

    def test_a_sampled_permutation_is_near_the_normal_limit(self):
        differences = np.random.default_rng(1).normal(0.1, 1, 400)
        found = compare(dict.fromkeys(range(400), 0.0), dict(enumerate(differences)), binary=False)
        normal = 2 * stats.norm.sf(abs(differences.sum()) / np.sqrt((differences**2).sum()))
        self.assertAlmostEqual(found.p_value, normal, delta=0.02)

    def test_interval_covers_the_truth(self):
        rng = np.random.default_rng(2)
        covered, runs = 0, 100
        for _ in range(runs):
            baseline = rng.random(150) < 0.5
            treatment = np.where(rng.random(150) < 0.3, rng.random(150) < 0.8, baseline)  # true difference: 0.3 * (0.8 - 0.5)
            found = compare(dict(enumerate(baseline)), dict(enumerate(treatment)), binary=True, n_resamples=499)
            covered += found.low <= 0.09 <= found.high
        self.assertGreaterEqual(covered, 88)
        self.assertLess(covered, runs)

    def test_interval_is_that_of_a_mean(self):
        differences = np.random.default_rng(3).normal(1, 2, 400)
        found = compare(dict.fromkeys(range(400), 0.0), dict(enumerate(differences)), binary=False)
        half = 1.96 * differences.std() / 20
        self.assertAlmostEqual(found.low, differences.mean() - half, delta=0.03)
        self.assertAlmostEqual(found.high, differences.mean() + half, delta=0.03)
        narrower = compare(dict.fromkeys(range(400), 0.0), dict(enumerate(differences)), binary=False, confidence=0.5)
        self.assertLess(narrower.high - narrower.low, (found.high - found.low) / 2)

    def test_never_nan(self):
        ids = range(20)
        zero = dict.fromkeys(ids, 0.0)
        for name, treatment, binary in (
                ("same", zero, True), ("same", zero, False), ("all won", dict.fromkeys(ids, 1.0), True),
                ("all by as much", dict.fromkeys(ids, 0.25), False), ("one", {**zero, 3: 1.0}, True),
                ("one", {**zero, 3: 1.0}, False)):
            with self.subTest(name, binary=binary), warnings.catch_warnings():
                warnings.simplefilter("error")
                found = compare(zero, treatment, binary=binary)
                self.assertTrue(all(map(math.isfinite, (found.low, found.high, found.p_value))), found)
                self.assertLessEqual(found.low, found.difference)
                self.assertGreaterEqual(found.high, found.difference)

    def test_several_seeds(self):
        baseline = {"a": 0, "b": 1, "c": 0, "d": 1}
        treatment = {7: {"a": 1, "b": 1, "c": 0, "d": 1}, 8: {"a": 0, "b": 1, "c": 0, "d": 0}}
        found = compare(baseline, treatment, binary=True)
        # By example: 0.5, 1, 0, 0.5 against 0, 1, 0, 1: one up and one down by a half, so every permutation is equally extreme.
        self.assertEqual((found.n, found.wins, found.losses, found.ties), (4, 1, 1, 2))
        self.assertAlmostEqual(found.difference, 0)
        self.assertAlmostEqual(found.p_value, 1)
        self.assertAlmostEqual(found.seed_spread, abs(0.75 - 0.25) / math.sqrt(2))
        one = compare({0: baseline}, {7: treatment[7]}, binary=True)
        self.assertEqual(one, compare(baseline, treatment[7], binary=True))

    def test_seeds_in_another_order_tie(self):
        values = [{id: value for id in range(5)} for value in (0.1, 0.2, 0.3)]
        found = compare(dict(enumerate(values)), dict(enumerate(values[::-1])), binary=False)
        self.assertEqual(found.ties, 5)

    def test_the_same_twice(self):
        baseline, treatment = paired(30, 4, 9, 50)
        self.assertEqual(compare(baseline, treatment, binary=False), compare(baseline, treatment, binary=False))

    def test_refusals(self):
        for baseline, treatment, binary, message in (
                ({"a": 1, "b": 0}, {"a": 1, "c": 0}, True, "2 are not on both sides, such as b, c"),
                ({0: {"a": 1, "b": 0}, 1: {"a": 1}}, {"a": 1, "b": 0}, True, "1 are not on both sides, such as b"),
                ({}, {}, True, "fewer than two"), ({"a": 1}, {"a": 1}, True, "fewer than two"),
                ({"a": 1, "b": 0.5}, {"a": 1, "b": 0}, True, "example b has 0.5, not 0 or 1"),
                ({"a": 1, "b": 0}, {"a": 1, "b": math.nan}, False, "example b has nan, not a number")):
            with self.subTest(message), self.assertRaisesRegex(ValueError, message):
                compare(baseline, treatment, binary=binary)


class Detectable(unittest.TestCase):
    def test_power_at_the_answer_by_hand(self):
        # Ten examples, all discordant: significant if 0 or 1 are on one side, 2 * 11 / 1024.
        toward = (1 + minimum_detectable(10, 1.0)) / 2
        power = sum(math.comb(10, k) * toward**k * (1 - toward)**(10 - k) for k in (0, 1, 9, 10))
        self.assertAlmostEqual(power, 0.8)

    def test_near_the_normal_approximation(self):
        # Connor 1987: n d^2 = (z_0.975 sqrt(share) + z_0.8 sqrt(share - d^2))^2; the exact test needs a little more.
        for n, share in ((500, 0.2), (2000, 0.1), (5153, 0.15)):
            difference = minimum_detectable(n, share)
            approximate = (1.959964 * math.sqrt(share) + 0.841621 * math.sqrt(share - difference**2)) / math.sqrt(n)
            self.assertGreater(difference, approximate)
            self.assertLess(difference, 1.1 * approximate)

    def test_too_few_discordant(self):
        self.assertEqual(minimum_detectable(200, 0), 6 / 200)
        self.assertAlmostEqual(stats.binom.sf(5, 200, minimum_detectable(200, 0.001)), 0.8)
        for n in (0, 1, 5):
            self.assertIsNone(minimum_detectable(n, 0.5))

    def test_of_comparisons(self):
        self.assertEqual(compare(*paired(30, 4, 6, 60), binary=True).minimum_detectable, minimum_detectable(100, 0.1))
        self.assertEqual(compare(*paired(40, 0, 0, 60), binary=True).minimum_detectable, 0.06)
        differences = np.random.default_rng(4).normal(0, 2, 50)
        found = compare(dict.fromkeys(range(50), 0.0), dict(enumerate(differences)), binary=False).minimum_detectable
        noncentral = found / differences.std(ddof=1) * math.sqrt(50)
        critical = stats.t.ppf(0.975, 49)
        self.assertAlmostEqual(stats.nct.sf(critical, 49, noncentral) + stats.nct.cdf(-critical, 49, noncentral), 0.8, places=4)
        self.assertIsNone(compare({0: 0.5, 1: 0.5}, {0: 0.75, 1: 0.75}, binary=False).minimum_detectable)
        values = np.linspace(0, 1, 20)
        self.assertIsNone(compare(dict(enumerate(values)), dict(enumerate(values + 0.1)), binary=False).minimum_detectable)  # equal but for rounding
        few = compare({0: {0: 1, 1: 0}}, {0: {0: 1, 1: 0}, 1: {0: 0, 1: 1}, 2: {0: 0, 1: 0}}, binary=True)
        self.assertIsNone(few.minimum_detectable)  # more than 100 points


class Others(unittest.TestCase):
    def test_holm(self):
        np.testing.assert_allclose(holm([comparison(p) for p in (0.01, 0.04, 0.03)]), [0.03, 0.06, 0.06])
        self.assertEqual(holm([]), [])

    def test_relative_cost(self):
        baseline = {id: (0.1 * (id + 1), id + 1) for id in range(30)}  # 0.1 s per token
        treatment = {id: (0.15 * 2 * (id + 1), 2 * (id + 1)) for id in range(30)}  # 0.15 s per token, and longer answers
        found = relative_cost(baseline, treatment)
        for value in (found.value, found.low, found.high):
            self.assertAlmostEqual(value, 1.5)
        noisy = {id: (seconds * (1 + 0.2 * (-1)**id), tokens) for id, (seconds, tokens) in treatment.items()}
        found = relative_cost(baseline, noisy)
        self.assertTrue(found.low < found.value < found.high, found)
        with self.assertRaisesRegex(ValueError, "no time"):
            relative_cost(baseline, {id: (0.0, 1) for id in baseline})
        with self.assertRaisesRegex(ValueError, "no interval"):  # samples without a token
            relative_cost(baseline, {id: (1.0, int(id == 3)) for id in baseline})


if __name__ == "__main__":
    unittest.main()
