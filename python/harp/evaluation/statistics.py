"""Is one method better than another on the same examples? Difference, interval, test, and what the sample could have shown.

Everything is paired by example. Bootstrap and tests come from scipy and statsmodels; this file only chooses among them.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

ALPHA = 0.05  # two-sided
POWER = 0.8
LEAST_DISCORDANT = 6  # 2 * 0.5^6 = 0.031 is the first p of McNemar's exact test below ALPHA; five in one direction give 0.0625
RESAMPLED_AT_ONCE = 4_000_000  # numbers, about 32 MB: resampling is done in batches of this size


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A treatment against a baseline over the same examples, in the metric's own unit."""

    n: int  # examples
    baseline: float  # mean
    treatment: float  # mean
    difference: float  # treatment - baseline
    low: float  # ends of the difference's interval
    high: float
    p_value: float  # for no difference; two-sided, not adjusted
    wins: int  # examples on which the treatment's value is higher
    losses: int
    ties: int
    minimum_detectable: float | None  # see minimum_detectable(); None if the examples do not determine it
    seed_spread: float | None  # standard deviation, over seeds, of the treatment's mean; None with one seed


def compare(baseline, treatment, *, binary, confidence=0.95, n_resamples=9999, seed=0) -> Comparison:
    """Compares {example id: value} with {example id: value}, or {seed: {example id: value}} on either side.

    With several seeds an example's value is its mean over the seeds, so that n stays the number of examples: runs of the same
    example are not independent evidence. The variation over seeds is given separately, as seed_spread.

    The interval is a bootstrap over examples (BCa; percentile where BCa is undefined, for example if all differences are equal).
    The test is McNemar's exact test for binary values with one seed per side, else a paired permutation test of the mean.

    Raises ValueError if the ids differ, if there are fewer than two, if a value is not finite, or not 0 or 1 though `binary`.
    """
    baseline, treatment = _by_seed(baseline), _by_seed(treatment)
    ids = _common_ids([*baseline.values(), *treatment.values()])
    base, treat = _values(baseline, ids, binary), _values(treatment, ids, binary)
    differences = treat.mean(axis=0) - base.mean(axis=0)
    differences[np.abs(differences) < 1e-12] = 0  # so that means of the same values, summed in another order of seeds, are a tie
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())

    if binary and len(baseline) == len(treatment) == 1:
        both = int((treat * base).sum())
        p_value = float(mcnemar([[both, losses], [wins, len(ids) - both - wins - losses]], exact=True).pvalue)
        detectable = minimum_detectable(len(ids), (wins + losses) / len(ids))
    else:
        p_value = _permutation_p(differences, n_resamples, seed)
        detectable = _detectable_mean(differences, binary)
    interval = _bootstrap((differences,), np.mean, confidence, n_resamples, seed)
    return Comparison(
        n=len(ids), baseline=float(base.mean()), treatment=float(treat.mean()), difference=interval.value,
        low=interval.low, high=interval.high, p_value=p_value,
        wins=wins, losses=losses, ties=len(ids) - wins - losses, minimum_detectable=detectable,
        seed_spread=float(treat.mean(axis=1).std(ddof=1)) if len(treat) > 1 else None)


def holm(comparisons) -> list[float]:
    """p-values of the comparisons, adjusted for their number (Holm), in the same order."""
    p_values = [comparison.p_value for comparison in comparisons]
    return multipletests(p_values, alpha=ALPHA, method="holm")[1].tolist() if p_values else []


def minimum_detectable(n, discordant_share) -> float | None:
    """The smallest true difference of two accuracies that McNemar's exact test over n examples finds with 80 % power at 0.05.

    `discordant_share` is the share of examples that only one of the two gets right. Exact, without normal approximation: the
    number of discordant examples is binomial(n, share), and of k discordant ones binomial(k, (1 + difference / share) / 2) go
    in the same direction. The power is the sum over k of the chance of a significant split. If the share is too small for that
    power even if all go in one direction, it is raised until it suffices. With a share of 0 the sample says nothing about the
    share to expect; the result is then the least that can be significant, 6 of n. None if n < 6, where nothing can be.
    """
    if n < LEAST_DISCORDANT:
        return None
    if discordant_share == 0:
        return LEAST_DISCORDANT / n

    counts = np.arange(n + 1)
    # The most discordant examples that may go in the losing direction while the test is significant; -1: none.
    critical = stats.binom.ppf(ALPHA / 2, counts, 0.5)
    critical = np.where(stats.binom.cdf(critical, counts, 0.5) <= ALPHA / 2, critical, critical - 1)

    def power(difference, share):
        toward = (1 + difference / share) / 2
        significant = stats.binom.cdf(critical, counts, 1 - toward) + stats.binom.cdf(critical, counts, toward)
        return stats.binom.pmf(counts, n, share) @ significant

    if power(discordant_share, discordant_share) >= POWER:
        return float(brentq(lambda difference: power(difference, discordant_share) - POWER, 0, discordant_share))
    if power(1, 1) < POWER:
        return None
    return float(brentq(lambda share: power(share, share) - POWER, discordant_share, 1))


def relative_cost(baseline, treatment, *, confidence=0.95, n_resamples=1999, seed=0) -> Estimate:
    """Seconds per token relative to the baseline's, a ratio of two ratios of sums, with its bootstrap interval over examples.

    Each side is {example id: (seconds, tokens)}, over the same ids. Raises ValueError like compare(), or if a side has no
    tokens or took no time, in the examples or in a sample of them.
    """
    ids = _common_ids([baseline, treatment])
    sums = np.array([[*baseline[id], *treatment[id]] for id in ids], dtype=float).T
    if not (sums.sum(axis=1) > 0).all():
        raise ValueError("no tokens or no time: there is no cost to compare")

    def ratio(base_seconds, base_tokens, seconds, tokens, axis=-1):
        return seconds.sum(axis) / tokens.sum(axis) / (base_seconds.sum(axis) / base_tokens.sum(axis))

    estimate = _bootstrap(tuple(sums), ratio, confidence, n_resamples, seed)
    if not math.isfinite(estimate.low) or not math.isfinite(estimate.high):
        raise ValueError("too few examples have tokens: their cost has no interval")
    return estimate


def _by_seed(values):
    return values if values and isinstance(next(iter(values.values())), Mapping) else {None: values}


def _common_ids(columns):
    ids = columns[0].keys()
    for column in columns[1:]:
        if odd := sorted(map(str, ids ^ column.keys())):
            raise ValueError(f"the examples differ: {len(odd)} are not on both sides, such as {', '.join(odd[:5])}")
    if len(ids) < 2:
        raise ValueError("fewer than two examples: nothing can be compared")
    return list(ids)


def _values(by_seed, ids, binary):
    """[seeds, examples]"""
    values = np.array([[column[id] for id in ids] for column in by_seed.values()], dtype=float)
    wrong = ~np.isfinite(values) | (binary & ~np.isin(values, (0, 1)))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(f"example {ids[column]} has {values[row, column]}, not {'0 or 1' if binary else 'a number'}")
    return values


def _permutation_p(differences, n_resamples, seed):
    # A tie stays a tie under every exchange of the two sides, so only other examples are permuted.
    nonzero = differences[differences != 0]
    if nonzero.size < 2:
        return 1.0  # both exchanges of a single pair are equally extreme
    return float(stats.permutation_test((nonzero,), np.sum, permutation_type="samples", n_resamples=n_resamples,
                                        vectorized=True, batch=_batch(nonzero.size), rng=seed).pvalue)


def _detectable_mean(differences, binary):
    """The mean that a paired t-test would detect with the same power, given the standard deviation of the differences."""
    deviation = differences.std(ddof=1)
    if deviation > 1e-12:  # equal differences deviate by their rounding
        effect = TTestPower().solve_power(nobs=differences.size, alpha=ALPHA, power=POWER)
        least = float(deviation * np.asarray(effect).item())  # an array of one element or a number, depending on which solver converged
        return None if binary and least > 1 else least
    return minimum_detectable(differences.size, 0) if binary and not differences.any() else None


def _bootstrap(samples, statistic, confidence, n_resamples, seed):
    value = float(statistic(*samples))
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            warnings.simplefilter("ignore", RuntimeWarning)  # divisions by zero in BCa, which give NaN
            low, high = stats.bootstrap(samples, statistic, paired=True, vectorized=True, confidence_level=confidence,
                                        method=method, n_resamples=n_resamples, batch=_batch(samples[0].size),
                                        rng=seed).confidence_interval
        if math.isfinite(low) and math.isfinite(high):
            break
    return Estimate(value, float(low), float(high))


def _batch(size):
    return max(1, RESAMPLED_AT_ONCE // size)
