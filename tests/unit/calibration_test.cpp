// Thresholds, histograms and shares from hand-made entropies and costs.
#include "decoding/calibration.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

namespace harp::decoding {
namespace {

double share_above(const std::vector<double> & entropies, double threshold) {
    const auto above = std::count_if(entropies.begin(), entropies.end(), [&](double h) { return h > threshold; });
    return static_cast<double>(above) / static_cast<double>(entropies.size());
}

TEST(Threshold, HandComputed) {
    struct Case {
        std::vector<double> entropies;
        double share;
        double threshold;
        double reached;
    };
    const std::vector<Case> cases = {
        {{1, 2, 3, 4, 5}, 0.2, 4.5, 0.2},
        {{5, 3, 1, 4, 2}, 0.2, 4.5, 0.2},           // in any order
        {{1, 2, 3, 4, 5}, 0.4, 3.5, 0.4},           // between two entropies
        {{1, 2, 3, 4, 5}, 0.29, 4.5, 0.2},          // the nearest share
        {{1, 2, 3, 4, 5}, 0.3, 4.5, 0.2},           // two are equally near: the smaller
        {{1, 2, 3, 4, 5}, 0.31, 3.5, 0.4},          //
        {{1, 2, 3, 4, 5}, 0, INFINITY, 0},          // never
        {{1, 2, 3, 4, 5}, 1, 0.5, 1},               // below the smallest
        {{1, 2, 3, 4, 5}, 0.05, 5, 0},              // less than one step of five: the largest itself does not hesitate
        {{0, 0, 0, 2}, 1, 1, 0.25},                 // no threshold is below 0
        {{0, 0, 0, 0}, 0.5, 0, 0},                  //
        {{2, 2, 2, 2}, 0.6, 1, 1},                  // all are equal: all or none
        {{2, 2, 2, 2}, 0.4, 2, 0},                  //
        {{1, 3, 3, 3, 3, 5}, 1.0 / 3, 4, 1.0 / 6},  // equal ones do not hesitate ...
        {{1, 3, 3, 3, 3, 5}, 0.6, 2, 5.0 / 6},      // ... or all hesitate
        {{2.0041, 2.0043}, 0.5, 2.0042, 0.5},       // as many decimals as needed
        {{2.004, 2.013}, 0.5, 2.01, 0.5},           // and no more
        {{3}, 0.2, 3, 0},
        {{3}, 1, 1.5, 1},
    };
    for (size_t i = 0; i < cases.size(); ++i) {
        const auto choice = threshold_for_share(cases[i].entropies, cases[i].share);
        EXPECT_EQ(choice.threshold, cases[i].threshold) << "case " << i;
        EXPECT_DOUBLE_EQ(choice.share, cases[i].reached) << "case " << i;
        EXPECT_DOUBLE_EQ(choice.share, share_above(cases[i].entropies, choice.threshold)) << "case " << i;
    }
}

// Neighbouring doubles: no number is between them, and the gate is strict.
TEST(Threshold, OfNeighbours) {
    const double low = 1.0 / 3;
    const double high = std::nextafter(low, 1.0);
    EXPECT_EQ(threshold_for_share({low, high}, 0.5).threshold, low);
}

TEST(Threshold, ReachesTheShareOfRandomEntropies) {
    std::mt19937 random(1);
    std::uniform_real_distribution<double> uniform(0, 12);
    std::vector<double> entropies(997);
    for (double & h : entropies) h = uniform(random);
    for (int percent = 1; percent <= 100; ++percent) {
        const auto choice = threshold_for_share(entropies, percent / 100.0);
        EXPECT_NEAR(choice.share, percent / 100.0, 0.5001 / 997);
        EXPECT_DOUBLE_EQ(choice.share, share_above(entropies, choice.threshold));
    }
}

TEST(Quantile, HandComputed) {
    EXPECT_EQ(quantile({4, 1, 3, 2, 5}, 0), 1);
    EXPECT_EQ(quantile({4, 1, 3, 2, 5}, 0.5), 3);
    EXPECT_EQ(quantile({4, 1, 3, 2, 5}, 1), 5);
    EXPECT_DOUBLE_EQ(quantile({1, 2}, 0.25), 1.25);
    EXPECT_EQ(quantile({7}, 0.3), 7);
}

TEST(Histogram, CountsEachOnce) {
    const std::vector<double> entropies = {0, 0.99, 1, 1.5, 7.2, 7.99, 8};
    const auto bins = histogram(entropies, 10);
    ASSERT_EQ(bins.size(), 9U);
    const std::vector<size_t> expected = {2, 2, 0, 0, 0, 0, 0, 2, 1};
    for (size_t i = 0; i < bins.size(); ++i) {
        EXPECT_EQ(bins[i].begin, static_cast<double>(i));
        EXPECT_EQ(bins[i].end, static_cast<double>(i + 1));
        EXPECT_EQ(bins[i].count, expected[i]) << "bin " << i;
    }
}

TEST(Histogram, ChoosesAWidth) {
    EXPECT_EQ(histogram(std::vector<double>{0.75}, 20).size(), 8U);   // of 0.1
    EXPECT_EQ(histogram(std::vector<double>{9.8}, 20).size(), 20U);   // of 0.5
    EXPECT_EQ(histogram(std::vector<double>{10.2}, 20).size(), 11U);  // of 1
    EXPECT_EQ(histogram(std::vector<double>{0, 0}, 20).size(), 1U);
    EXPECT_TRUE(histogram({}, 20).empty());
}

/// A model that has measured each batch size often, at `seconds`.
forward::CostModel measured(const std::map<size_t, double> & seconds) {
    forward::CostModel costs;
    for (const auto & [n, s] : seconds) {
        for (int i = 0; i < 5; ++i) costs.add_call(n, s);
    }
    return costs;
}

TEST(Budget, Costs) {
    const auto costs = measured({{1, 0.01}, {2, 0.018}, {4, 0.03}});
    EXPECT_DOUBLE_EQ(fused_cost(costs), 1.8);
    EXPECT_DOUBLE_EQ(lazy_cost(costs, 1), 2);            // 1 + 1 * c(1)
    EXPECT_DOUBLE_EQ(lazy_cost(costs, 0.5), 1.9);        // 1 + 0.5 * c(2)
    EXPECT_DOUBLE_EQ(lazy_cost(costs, 0.25), 1.75);      // 1 + 0.25 * c(4)
    EXPECT_NEAR(lazy_cost(costs, 1.0 / 3), 1.8, 1e-12);  // c(3) = 2.4, interpolated linearly
    EXPECT_NEAR(lazy_cost(costs, 0.001), 1.75, 1e-12);   // above the largest size in proportion, so never cheaper
}

TEST(Budget, Buys) {
    const auto costs = measured({{1, 0.01}, {2, 0.018}, {4, 0.03}, {8, 0.04}});
    struct Case {
        double budget;
        double share;
        Schedule schedule;
    };
    // between 4 and 8 rows c(n) = 2 + n / 4, so at share h the cost is 1.25 + 2h
    for (const Case & c : {Case{1.8, 1, Schedule::fused}, Case{3, 1, Schedule::fused}, Case{1.65, 0.2, Schedule::lazy},
                           Case{1.5, 0.125, Schedule::lazy}}) {
        const auto bought = share_for_budget(costs, c.budget + 1e-9);
        ASSERT_TRUE(bought) << c.budget;
        EXPECT_DOUBLE_EQ(bought->share, c.share) << c.budget;
        EXPECT_EQ(bought->schedule, c.schedule) << c.budget;
        EXPECT_LE(bought->cost, c.budget + 1e-9);
    }
    EXPECT_FALSE(share_for_budget(costs, 1.49));  // each row of the twin costs half a step, even at rare hesitations
    // if two rows cost more than twice one row, the lazy schedule can hesitate at every step
    EXPECT_EQ(share_for_budget(measured({{1, 0.01}, {2, 0.025}}), 2)->share, 1);
}

TEST(PairedDifference, HandComputed) {
    const PairedDifference d = paired_difference(std::vector<double>{1, 1, 0, 1}, std::vector<double>{0, 1, 1, 0});
    EXPECT_DOUBLE_EQ(d.mean, 0.25);
    EXPECT_EQ(d.n_better, 2U);
    EXPECT_EQ(d.n_worse, 1U);
    // differences 1, 0, -1, 1: squares around the mean sum to 2.75; divided by 3, and by 4
    EXPECT_NEAR(d.standard_error, std::sqrt(2.75 / 3 / 4), 1e-12);
    EXPECT_NEAR(d.high() - d.low(), 2 * 1.96 * d.standard_error, 1e-12);
    EXPECT_TRUE(std::isnan(paired_difference(std::vector<double>{1}, std::vector<double>{0}).standard_error));
}

std::vector<double> shifted_noise(std::mt19937 & random, size_t n, double shift) {
    std::normal_distribution<double> normal(shift, 1);
    std::vector<double> values(n);
    for (double & value : values) value = normal(random);
    return values;
}

TEST(BestOf, OneTryIsASignTest) {
    // all eight differences are positive and equal: one flip in 2^8 is equally good
    const std::vector<std::vector<double>> values = {std::vector<double>(8, 1.0)};
    const BestOfMany best = best_of(values, std::vector<double>(8, 0.0));
    EXPECT_EQ(best.index, 0U);
    EXPECT_NEAR(best.p_value, 1.0 / 256, 0.004);
}

TEST(BestOf, FindsTheOneThatHelpsAmongMany) {
    std::mt19937 random(3);
    std::vector<std::vector<double>> values;
    for (int k = 0; k < 100; ++k) values.push_back(shifted_noise(random, 200, k == 42 ? 0.6 : 0.0));
    const BestOfMany best = best_of(values, std::vector<double>(200, 0.0));
    EXPECT_EQ(best.index, 42U);
    EXPECT_LT(best.p_value, 0.001);
}

TEST(BestOf, TheBestOfManyThatDoNothingIsNoFinding) {
    std::mt19937 random(5);
    int n_found = 0;
    constexpr int n_rounds = 40;
    for (int round = 0; round < n_rounds; ++round) {
        std::vector<std::vector<double>> values;
        for (int k = 0; k < 50; ++k) values.push_back(shifted_noise(random, 60, 0));
        n_found += best_of(values, std::vector<double>(60, 0.0)).p_value <= 0.05 ? 1 : 0;
    }
    EXPECT_LE(n_found, 7) << "of 40 rounds 2 are expected; uncorrected it would be most of them";
}

TEST(BestOf, TriesThatChangeNothingHaveNoEffect) {
    const std::vector<std::vector<double>> values = {{1, 0, 1}, {1, 0, 1}};
    EXPECT_EQ(best_of(values, std::vector<double>{1, 0, 1}).p_value, 1);
}

}  // namespace
}  // namespace harp::decoding
