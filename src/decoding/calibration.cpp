#include "decoding/calibration.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <functional>
#include <limits>
#include <random>

namespace harp::decoding {

namespace {

/// A number in [low, high) with few decimals, so that a person can type it. `high` may be infinite.
double round_number_between(double low, double high) {
    const double middle = std::isinf(high) ? low : low + (high - low) / 2;
    for (double scale = 100; scale <= 1e15; scale *= 10) {
        // also try rounding up: if `high` is infinite `middle` is `low`, and rounding may go below it
        for (const double rounded : {std::round(middle * scale) / scale, std::ceil(middle * scale) / scale}) {
            if (rounded >= low && rounded < high) return rounded;
        }
    }
    return low;
}

}  // namespace

ThresholdChoice threshold_for_share(std::vector<double> entropies, double share) {
    assert(!entropies.empty() && share >= 0 && share <= 1);
    if (share == 0) return {std::numeric_limits<double>::infinity(), 0};
    std::sort(entropies.begin(), entropies.end(), std::greater<>());
    const size_t n = entropies.size();
    const double wanted = share * static_cast<double>(n);
    // exactly k steps can hesitate if the k-th entropy differs from the next one; a threshold cannot be below 0
    const auto next = [&](size_t k) { return k < n ? entropies[k] : 0.0; };
    const auto can_hesitate = [&](size_t k) { return k == 0 || entropies[k - 1] > next(k); };
    size_t best = 0;
    for (size_t k = 0; k <= n; ++k) {
        const auto distance = [&](size_t count) { return std::abs(static_cast<double>(count) - wanted); };
        if (can_hesitate(k) && distance(k) < distance(best)) best = k;
    }
    const double above = best == 0 ? std::numeric_limits<double>::infinity() : entropies[best - 1];
    return {round_number_between(next(best), above), static_cast<double>(best) / static_cast<double>(n)};
}

double quantile(std::vector<double> values, double q) {
    assert(!values.empty() && q >= 0 && q <= 1);
    std::sort(values.begin(), values.end());
    const double rank = q * static_cast<double>(values.size() - 1);
    const auto below = static_cast<size_t>(rank);
    const size_t above = std::min(below + 1, values.size() - 1);
    return values[below] + (rank - static_cast<double>(below)) * (values[above] - values[below]);
}

std::vector<HistogramBin> histogram(std::span<const double> entropies, size_t max_bins) {
    if (entropies.empty()) return {};
    const double largest = *std::max_element(entropies.begin(), entropies.end());
    constexpr std::array<double, 6> widths = {0.1, 0.2, 0.5, 1, 2, 5};
    const auto n_bins = [&](double width) { return static_cast<size_t>(largest / width) + 1; };
    const auto * fitting = std::find_if(widths.begin(), widths.end(), [&](double w) { return n_bins(w) <= max_bins; });
    const double width = fitting == widths.end() ? widths.back() : *fitting;
    std::vector<HistogramBin> bins(n_bins(width));
    for (size_t i = 0; i < bins.size(); ++i)
        bins[i] = {static_cast<double>(i) * width, static_cast<double>(i + 1) * width, 0};
    for (const double entropy : entropies) ++bins[static_cast<size_t>(entropy / width)].count;
    return bins;
}

double lazy_cost(const forward::CostModel & costs, double share) {
    return 1 + share * costs.call_seconds(1 / share).value() / costs.call_seconds(1).value();
}

double fused_cost(const forward::CostModel & costs) {
    return costs.call_seconds(2).value() / costs.call_seconds(1).value();
}

std::optional<BudgetShare> share_for_budget(const forward::CostModel & costs, double budget) {
    if (const double cost = fused_cost(costs); cost <= budget) return BudgetShare{1, cost, Schedule::fused};
    for (int thousandths = 1000; thousandths > 0; --thousandths) {
        const double share = thousandths / 1000.0;
        if (const double cost = lazy_cost(costs, share); cost <= budget)
            return BudgetShare{share, cost, Schedule::lazy};
    }
    return std::nullopt;
}

PairedDifference paired_difference(std::span<const double> values, std::span<const double> baseline) {
    assert(values.size() == baseline.size() && !values.empty());
    const auto n = static_cast<double>(values.size());
    PairedDifference result;
    for (size_t i = 0; i < values.size(); ++i) {
        result.mean += (values[i] - baseline[i]) / n;
        if (values[i] > baseline[i]) ++result.n_better;
        if (values[i] < baseline[i]) ++result.n_worse;
    }
    double squares = 0;
    for (size_t i = 0; i < values.size(); ++i) squares += std::pow(values[i] - baseline[i] - result.mean, 2);
    result.standard_error = n > 1 ? std::sqrt(squares / (n - 1) / n) : std::numeric_limits<double>::quiet_NaN();
    return result;
}

BestOfMany best_of(std::span<const std::vector<double>> values, std::span<const double> baseline) {
    assert(!values.empty());
    const size_t n_tries = values.size();
    const size_t n = baseline.size();
    std::vector<float> differences(n * n_tries);  // [n, tries], each try scaled to a sum of squares of 1
    std::vector<double> means(n_tries);
    for (size_t k = 0; k < n_tries; ++k) {
        double squares = 0;
        for (size_t i = 0; i < n; ++i) squares += std::pow(values[k][i] - baseline[i], 2);
        means[k] = paired_difference(values[k], baseline).mean;
        for (size_t i = 0; i < n && squares > 0; ++i)
            differences[i * n_tries + k] = static_cast<float>((values[k][i] - baseline[i]) / std::sqrt(squares));
    }
    BestOfMany best{static_cast<size_t>(std::max_element(means.begin(), means.end()) - means.begin()), 1};
    std::vector<float> sums(n_tries);
    const auto add_signed = [&](const auto & is_flipped) {
        std::fill(sums.begin(), sums.end(), 0.0F);
        for (size_t i = 0; i < n; ++i) {
            const float sign = is_flipped(i) ? -1.0F : 1.0F;
            for (size_t k = 0; k < n_tries; ++k) sums[k] += sign * differences[i * n_tries + k];
        }
    };
    add_signed([](size_t) { return false; });
    const float observed = sums[best.index] * (1 - 1e-5F);  // slightly less, so that a tie counts whatever its rounding
    constexpr int n_flips = 4000;
    std::mt19937 random(1);  // a fixed seed, for the same answer each time
    int n_as_good = 1;       // the data as they are count as one of the flips
    for (int flip = 0; flip < n_flips; ++flip) {
        add_signed([&](size_t) { return (random() & 1U) != 0; });
        if (*std::max_element(sums.begin(), sums.end()) >= observed) ++n_as_good;
    }
    best.p_value = static_cast<double>(n_as_good) / (n_flips + 1);
    return best;
}

}  // namespace harp::decoding
