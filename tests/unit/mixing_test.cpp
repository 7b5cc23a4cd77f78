// Mixing of logits: exact at both ends, rounded twice in between, correct in place.
#include "method/mixing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace {

using harp::method::accumulate_mean;
using harp::method::mix_logits;

std::vector<float> random_row(size_t n, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0F, 5.0F);
    std::vector<float> row(n);
    for (float & x : row) x = normal(random);
    return row;
}

std::vector<float> mixed(const std::vector<float> & vanilla, const std::vector<float> & reframed, float beta) {
    std::vector<float> out(vanilla.size(), -1.0F);
    mix_logits(vanilla, reframed, {beta}, out);
    return out;
}

// Equality of bits: distinguishes -0 from +0, and works for NaN.
void expect_same_bits(const std::vector<float> & a, const std::vector<float> & b) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
        EXPECT_EQ(std::bit_cast<uint32_t>(a[i]), std::bit_cast<uint32_t>(b[i])) << "at " << i;
    }
}

TEST(Mixing, HandComputed) {
    EXPECT_EQ(mixed({1.0F, -2.0F, 8.0F}, {3.0F, 2.0F, -8.0F}, 0.5F), (std::vector<float>{2.0F, 0.0F, 0.0F}));
    EXPECT_EQ(mixed({1.0F, -2.0F, 8.0F}, {3.0F, 2.0F, -8.0F}, 0.75F), (std::vector<float>{1.5F, -1.0F, 4.0F}));
    EXPECT_EQ(mixed({4.0F}, {8.0F}, 0.25F), (std::vector<float>{7.0F}));
}

TEST(Mixing, BetaOneIsVanillaBitForBit) {
    auto vanilla = random_row(1003, 1);
    auto reframed = random_row(1003, 2);
    vanilla[0] = -0.0F;
    vanilla[1] = -INFINITY;
    reframed[2] = INFINITY;
    reframed[3] = NAN;
    expect_same_bits(mixed(vanilla, reframed, 1.0F), vanilla);
}

TEST(Mixing, BetaZeroIsReframedBitForBit) {
    auto vanilla = random_row(1003, 1);
    auto reframed = random_row(1003, 2);
    vanilla[0] = -INFINITY;
    reframed[1] = -0.0F;
    expect_same_bits(mixed(vanilla, reframed, 0.0F), reframed);
}

TEST(Mixing, ForbiddenTokensStayForbidden) {
    EXPECT_EQ(mixed({-INFINITY, 1.0F}, {-INFINITY, 3.0F}, 0.5F), (std::vector<float>{-INFINITY, 2.0F}));
}

// Values found by search, where a fused multiply-add would round to another float.
TEST(Mixing, RoundsEachOperation) {
    constexpr float beta = 0.3F;
    constexpr float vanilla = 0x1.6cp+3F;
    constexpr float reframed = 0x1.4p+0F;
    constexpr float expected = 0x1.126668p+2F;
    ASSERT_NE(std::fma(beta, vanilla, (1.0F - beta) * reframed), expected);
    ASSERT_NE(std::fma(1.0F - beta, reframed, beta * vanilla), expected);
    // a long row, to cover the vectorised loop and its remainder
    const size_t n = 37;
    EXPECT_EQ(mixed(std::vector<float>(n, vanilla), std::vector<float>(n, reframed), beta),
              std::vector<float>(n, expected));
}

TEST(Mixing, OutMayBeEitherInput) {
    const auto vanilla = random_row(131, 3);
    const auto reframed = random_row(131, 4);
    for (const float beta : {0.0F, 0.3F, 0.5F, 1.0F, 2.5F}) {
        const auto expected = mixed(vanilla, reframed, beta);
        auto in_place = vanilla;
        mix_logits(in_place, reframed, {beta}, in_place);
        expect_same_bits(in_place, expected);
        in_place = reframed;
        mix_logits(vanilla, in_place, {beta}, in_place);
        expect_same_bits(in_place, expected);
    }
}

std::vector<float> contrasted(const std::vector<float> & vanilla, const std::vector<float> & reframed, float beta,
                              float plausibility = 0) {
    std::vector<float> out(vanilla.size(), -1.0F);
    mix_logits(vanilla, reframed, {beta, plausibility}, out);
    return out;
}

double log_sum_exp(const std::vector<float> & row) {
    double sum = 0;
    for (const float x : row) sum += std::exp(static_cast<double>(x));
    return std::log(sum);
}

TEST(Contrast, SubtractsLogProbabilities) {
    // vanilla (1/2, 1/4, 1/4), reframed (1/4, 1/2, 1/4): with beta 2 p^2 / q = (1, 1/8, 1/4)
    const float ln2 = std::log(2.0F);
    const auto out = contrasted({ln2 + 5, 5, 5}, {-3, ln2 - 3, -3}, 2.0F);
    EXPECT_NEAR(out[0], 0, 1e-6);
    EXPECT_NEAR(out[1], -3 * ln2, 1e-6);
    EXPECT_NEAR(out[2], -2 * ln2, 1e-6);
}

TEST(Contrast, MatchesDouble) {
    const auto vanilla = random_row(1003, 6);
    const auto reframed = random_row(1003, 7);
    const double v = log_sum_exp(vanilla), r = log_sum_exp(reframed);
    for (const float beta : {1.01F, 1.5F, 8.0F}) {
        const auto out = contrasted(vanilla, reframed, beta);
        for (size_t i = 0; i < out.size(); ++i) {
            const double expected = static_cast<double>(beta) * (static_cast<double>(vanilla[i]) - v) +
                                    (1 - static_cast<double>(beta)) * (static_cast<double>(reframed[i]) - r);
            EXPECT_NEAR(static_cast<double>(out[i]), expected, 1e-4) << beta << " " << i;
        }
    }
}

TEST(Contrast, WhatIsImplausibleKeepsItsProbability) {
    const auto vanilla = random_row(1003, 8);
    const auto reframed = random_row(1003, 9);
    const double norm = log_sum_exp(vanilla);
    const float best = *std::max_element(vanilla.begin(), vanilla.end());
    for (const float alpha : {1e-6F, 0.1F, 1.0F}) {
        const auto out = contrasted(vanilla, reframed, 2.0F, alpha);
        const auto all = contrasted(vanilla, reframed, 2.0F);
        size_t n_changed = 0;
        for (size_t i = 0; i < out.size(); ++i) {
            if (vanilla[i] >= best + std::log(alpha)) {
                EXPECT_EQ(out[i], all[i]);
                ++n_changed;
            } else {
                EXPECT_NEAR(static_cast<double>(out[i]), static_cast<double>(vanilla[i]) - norm, 1e-4);
            }
        }
        EXPECT_GE(n_changed, 1U) << "the most probable one is plausible";
        EXPECT_LT(n_changed, out.size());
    }
}

TEST(Contrast, StaysFiniteWhereVanillaIs) {
    const auto out =
        contrasted({1.0F, 2.0F, -INFINITY, -INFINITY, 0.0F}, {1.0F, -INFINITY, 3.0F, -INFINITY, 0.0F}, 3.0F);
    const double norm = log_sum_exp({1.0F, 2.0F, 0.0F});
    EXPECT_TRUE(std::isfinite(out[0]));
    EXPECT_NEAR(static_cast<double>(out[1]), 2 - norm, 1e-6) << "the second pass rules it out: it stays as it is";
    EXPECT_EQ(out[2], -INFINITY);
    EXPECT_EQ(out[3], -INFINITY);
    EXPECT_TRUE(std::isfinite(out[4]));
}

TEST(Contrast, OfTwoEqualRowsIsVanilla) {
    const auto row = random_row(501, 10);
    const double norm = log_sum_exp(row);
    const auto out = contrasted(row, row, 4.0F);
    for (size_t i = 0; i < row.size(); ++i)
        EXPECT_NEAR(static_cast<double>(out[i]), static_cast<double>(row[i]) - norm, 1e-4);
}

TEST(Mean, OfOneRowIsThatRowBitForBit) {
    auto row = random_row(77, 5);
    row[0] = -0.0F;
    row[1] = -INFINITY;
    std::vector<float> mean(row.size(), 0.0F);
    accumulate_mean(row, 1, mean);
    expect_same_bits(mean, row);
}

TEST(Mean, HandComputed) {
    std::vector<float> mean(2, 0.0F);
    accumulate_mean(std::vector<float>{4.0F, -INFINITY}, 4, mean);
    accumulate_mean(std::vector<float>{8.0F, 0.0F}, 4, mean);
    accumulate_mean(std::vector<float>{-4.0F, 0.0F}, 4, mean);
    accumulate_mean(std::vector<float>{2.0F, 1.0F}, 4, mean);
    EXPECT_EQ(mean, (std::vector<float>{2.5F, -INFINITY}));
}

TEST(Mean, OfManyRowsMatchesDouble) {
    for (const unsigned count : {2U, 3U, 8U}) {
        std::vector<float> mean(501, 0.0F);
        std::vector<double> expected(501, 0.0);
        for (unsigned k = 0; k < count; ++k) {
            const auto row = random_row(501, 10 + k);
            accumulate_mean(row, count, mean);
            for (size_t i = 0; i < row.size(); ++i) expected[i] += static_cast<double>(row[i]) / count;
        }
        for (size_t i = 0; i < mean.size(); ++i) EXPECT_NEAR(static_cast<double>(mean[i]), expected[i], 5e-6);
    }
}

}  // namespace
