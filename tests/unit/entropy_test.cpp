// Entropy compared with closed forms and with long double, on every instruction set that this processor has.
#include "method/entropy.h"

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace {

using harp::method::entropy_bits;

// Every test runs once for each Highway target. Afterwards Highway chooses again.
class Entropy : public testing::TestWithParam<int64_t> {
  protected:
    void SetUp() override {
        hwy::SetSupportedTargetsForTest(GetParam());
        hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    }
    void TearDown() override {
        hwy::SetSupportedTargetsForTest(0);
        hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    }
};

std::string target_name(const testing::TestParamInfo<int64_t> & info) {
    return hwy::TargetName(info.param);
}

INSTANTIATE_TEST_SUITE_P(Targets, Entropy, testing::ValuesIn(hwy::SupportedAndGeneratedTargets()), target_name);

// -sum p log2 p, directly from the definition.
double reference(const std::vector<float> & logits) {
    const long double max = *std::max_element(logits.begin(), logits.end());
    long double sum = 0;
    for (const float x : logits) sum += std::exp(x - max);
    long double entropy = 0;
    for (const float x : logits) {
        const long double p = std::exp(x - max) / sum;
        if (p > 0) entropy -= p * std::log2(p);
    }
    return static_cast<double>(entropy);
}

std::vector<float> random_logits(size_t n, float deviation) {
    std::mt19937 random(static_cast<unsigned>(n));
    std::normal_distribution<float> normal(-3.0F, deviation);
    std::vector<float> logits(n);
    for (float & x : logits) x = normal(random);
    return logits;
}

TEST_P(Entropy, UniformIsLog2OfTheCount) {
    for (const size_t n : {1U, 2U, 3U, 7U, 8U, 16U, 31U, 32U, 33U, 63U, 64U, 65U, 1000U, 151936U}) {
        for (const float level : {0.0F, 1e4F, -1e4F, 3e38F, -3e38F}) {
            EXPECT_NEAR(entropy_bits(std::vector<float>(n, level)), std::log2(static_cast<double>(n)), 1e-12)
                << n << " logits of " << level;
        }
    }
}

// Two tokens with odds r : 1 have H = log2(1 + r) - r log2(r) / (1 + r).
TEST_P(Entropy, TwoTokens) {
    for (const double r : {1.0, 2.0, 3.0, 9.0, 999.0}) {
        const double expected = std::log2(1.0 + r) - r * std::log2(r) / (1.0 + r);
        EXPECT_NEAR(entropy_bits(std::vector<float>{static_cast<float>(std::log(r)), 0.0F}), expected, 1e-6) << r;
        EXPECT_NEAR(entropy_bits(std::vector<float>{0.0F, static_cast<float>(std::log(r))}), expected, 1e-6) << r;
    }
    // by hand: p = 3/4, 1/4 has 2 - 3/4 log2 3 bits
    EXPECT_NEAR(entropy_bits(std::vector<float>{std::log(3.0F), 0.0F}), 0.811278124459, 1e-7);
}

// p = 1/2, 1/4, 1/8, 1/8 has 1.75 bits.
TEST_P(Entropy, Dyadic) {
    const float ln2 = std::log(2.0F);
    EXPECT_NEAR(entropy_bits(std::vector<float>{3 * ln2, 2 * ln2, ln2, ln2}), 1.75, 1e-6);
    EXPECT_NEAR(entropy_bits(std::vector<float>{ln2, 3 * ln2, ln2, 2 * ln2}), 1.75, 1e-6);
}

TEST_P(Entropy, MinusInfinityIsProbabilityZero) {
    EXPECT_EQ(entropy_bits(std::vector<float>{-INFINITY, 2.0F}), 0.0);
    EXPECT_EQ(entropy_bits(std::vector<float>{2.0F, -INFINITY, 2.0F}), 1.0);
    for (const size_t n : {5U, 64U, 100U, 4096U}) {
        std::vector<float> logits(n, -INFINITY);
        logits[n / 2] = -7.0F;
        EXPECT_EQ(entropy_bits(logits), 0.0) << n;
        logits[n - 1] = logits[0] = logits[1] = -7.0F;
        EXPECT_EQ(entropy_bits(logits), 2.0) << n;
    }
}

TEST_P(Entropy, CertaintyIsExactlyZero) {
    EXPECT_EQ(entropy_bits(std::vector<float>{5.0F}), 0.0);
    EXPECT_EQ(entropy_bits(std::vector<float>{1e4F, -1e4F}), 0.0);
    EXPECT_EQ(entropy_bits(std::vector<float>{3e38F, -3e38F, -3e38F}), 0.0);
    std::vector<float> logits(100, -500.0F);
    logits[77] = 500.0F;
    EXPECT_EQ(entropy_bits(logits), 0.0);
}

// exp(-80) .. exp(-104) would be tiny or denormal: such tokens must neither count nor disturb.
TEST_P(Entropy, TinyProbabilities) {
    for (float gap = 60.0F; gap < 130.0F; gap += 0.5F) {
        std::vector<float> logits(1000, -gap);
        logits[0] = logits[999] = 0.0F;
        EXPECT_NEAR(entropy_bits(logits), 1.0, 1e-12) << gap;
    }
}

TEST_P(Entropy, IsInvariantUnderShift) {
    auto logits = random_logits(1000, 2.0F);
    // multiples of 2^-10 stay exact when 1e4 is added
    for (float & x : logits) x = std::round(x * 1024.0F) / 1024.0F;
    const double expected = entropy_bits(logits);
    for (float & x : logits) x += 1e4F;
    EXPECT_EQ(entropy_bits(logits), expected);
    for (float & x : logits) x -= 2e4F;
    EXPECT_EQ(entropy_bits(logits), expected);
}

TEST_P(Entropy, MatchesLongDouble) {
    for (const size_t n : {1U, 2U, 7U, 8U, 15U, 49152U, 151936U, 262144U}) {
        for (const float deviation : {0.1F, 2.0F, 10.0F}) {
            const auto logits = random_logits(n, deviation);
            const double expected = reference(logits);
            // Short rows show the rounding of single exponentials; in long ones it averages out.
            EXPECT_NEAR(entropy_bits(logits), expected, n < 100 ? 1e-6 : 1e-7)
                << n << " logits of deviation " << deviation;
        }
    }
}

// Every length up to several vectors: no logit may be skipped or read twice.
TEST_P(Entropy, EveryLength) {
    for (size_t n = 1; n < 300; ++n) {
        const auto logits = random_logits(n, 1.0F);
        EXPECT_NEAR(entropy_bits(logits), reference(logits), 1e-6) << n;
    }
}

TEST_P(Entropy, RatioIsOfTheTwoGreatest) {
    const auto ratio = [](const std::vector<float> & logits) { return harp::method::summarise_softmax(logits).ratio; };
    EXPECT_EQ(ratio({3.0F}), 0.0);
    EXPECT_EQ(ratio({3.0F, 3.0F, -1.0F}), 1.0);
    EXPECT_NEAR(ratio({std::log(4.0F), 0.0F}), 0.25, 1e-6);
    EXPECT_EQ(ratio({-INFINITY, 2.0F, -INFINITY}), 0.0);
    for (size_t n = 2; n < 300; ++n) {
        auto logits = random_logits(n, 1.0F);
        const double found = ratio(logits);
        std::sort(logits.begin(), logits.end(), std::greater<>());
        EXPECT_DOUBLE_EQ(found, std::exp(static_cast<double>(logits[1]) - static_cast<double>(logits[0]))) << n;
    }
}

// A NaN must be noticed at any place. Depending on the instruction set, Max may ignore it.
TEST_P(Entropy, NanAnywhereGivesNan) {
    for (const size_t n : {1U, 5U, 64U, 131U}) {
        for (size_t at = 0; at < n; ++at) {
            auto logits = random_logits(n, 1.0F);
            logits[at] = NAN;
            EXPECT_TRUE(std::isnan(entropy_bits(logits))) << at << " of " << n;
            logits[at] = INFINITY;
            EXPECT_TRUE(std::isnan(entropy_bits(logits))) << at << " of " << n;
        }
    }
}

TEST_P(Entropy, NoTokenPossibleGivesNan) {
    for (const size_t n : {1U, 3U, 64U, 1000U}) {
        EXPECT_TRUE(std::isnan(entropy_bits(std::vector<float>(n, -INFINITY)))) << n;
    }
}

TEST(EntropyTargets, Agree) {
    const auto logits = random_logits(151936, 2.5F);
    const double expected = entropy_bits(logits);
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
        hwy::SetSupportedTargetsForTest(target);
        hwy::GetChosenTarget().Update(hwy::SupportedTargets());
        EXPECT_NEAR(entropy_bits(logits), expected, 1e-6) << hwy::TargetName(target);
    }
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace
