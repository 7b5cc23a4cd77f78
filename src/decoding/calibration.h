// What `harp calibrate` computes from measured entropies, costs and scores: threshold, histogram, share for a budget.
// Pure.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "decoding/score.h"
#include "forward/cost_model.h"

namespace harp::decoding {

/// A threshold and the share of the given steps whose entropy is above it.
struct ThresholdChoice {
    double threshold = 0;  ///< bits; infinite for a share of 0
    double share = 0;      ///< the actual share, 0..1: steps are whole, and equal entropies cannot be separated
};

/// The threshold whose share of steps with entropy > threshold, strictly, is nearest to `share` (of two equally near
/// the smaller share). It lies between two entropies, and has as few decimals as that allows, but at least two.
///
/// @param entropies of single steps, bits, >= 0; in any order; not empty
/// @param share     0..1. 0 gives infinity: never. 1 gives a threshold below the smallest entropy, unless that is 0: no
///                  threshold >= 0 is below 0.
[[nodiscard]] ThresholdChoice threshold_for_share(std::vector<double> entropies, double share);

/// Quantile `q` (0..1) of `values` (not empty, in any order), linear between neighbouring values.
[[nodiscard]] double quantile(std::vector<double> values, double q);

struct HistogramBin {
    double begin = 0;  ///< bits; the bin holds begin <= entropy < end
    double end = 0;
    size_t count = 0;
};
/// Bins of equal, round width (0.1, 0.2, 0.5, 1, 2 or 5 bits), from 0 to above the largest entropy; at most `max_bins`
/// unless even the widest bins are more.
[[nodiscard]] std::vector<HistogramBin> histogram(std::span<const double> entropies, size_t max_bins);

/// What a time budget allows.
struct BudgetShare {
    double share = 0;  ///< largest affordable share of hesitations
    double cost = 0;   ///< predicted time of a step with that share, in vanilla steps
    Schedule schedule = Schedule::lazy;
};
/// Predicted time of a step, in vanilla steps, at a share of hesitations in (0, 1]: 1 + share * c(1 / share), where
/// c(n) is the time of a batch of n rows divided by that of one. However rare hesitations are, it does not fall below 1
/// + c(n) / n for the largest batch, because the second pass reads every token in the end.
[[nodiscard]] double lazy_cost(const forward::CostModel & costs, double share);
/// c(2), since each step decodes two rows.
[[nodiscard]] double fused_cost(const forward::CostModel & costs);
/// The largest share, in steps of 0.001, whose cost is at most `budget`; nullopt if even the smallest costs more.
/// @param costs with measurements of 1 and 2 rows
[[nodiscard]] std::optional<BudgetShare> share_for_budget(const forward::CostModel & costs, double budget);

/// The difference between two methods on the same examples.
struct PairedDifference {
    double mean = 0;
    double standard_error = 0;  ///< NaN for fewer than two values
    size_t n_better = 0, n_worse = 0;

    /// Ends of a 95 % interval, by the normal approximation.
    [[nodiscard]] double low() const { return mean - 1.96 * standard_error; }
    [[nodiscard]] double high() const { return mean + 1.96 * standard_error; }
};
/// @param values, baseline [n], for the same examples
[[nodiscard]] PairedDifference paired_difference(std::span<const double> values, std::span<const double> baseline);

/// The best of many tries, and how often chance alone would produce one as good.
struct BestOfMany {
    size_t index = 0;
    double p_value = 1;  ///< corrected for the number of tries
};
/// The try with the greatest mean difference. The p-value is one-sided, from a sign-flip permutation test on the
/// maximum over all tries (Westfall and Young). It is exact if each example's differences are symmetric around zero,
/// however correlated the tries are.
///
/// @param values   [tries][n], at least one
/// @param baseline [n]
[[nodiscard]] BestOfMany best_of(std::span<const std::vector<double>> values, std::span<const double> baseline);

}  // namespace harp::decoding
