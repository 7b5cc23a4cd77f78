// Mixing of logits: exact at the ends, rounded twice in between, safe in place.
#include "method/mixing.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace {

using harp::method::accumulate_mean;
using harp::method::mix_logits;

constexpr float infinity = std::numeric_limits<float>::infinity();

std::vector<float> random_row(size_t n, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0F, 5.0F);
    std::vector<float> row(n);
    for (float & x : row) x = normal(random);
    return row;
}

std::vector<float> mixed(const std::vector<float> & vanilla, const std::vector<float> & reframed, float beta) {
    std::vector<float> out(vanilla.size(), -1.0F);
    mix_logits(vanilla, reframed, beta, out);
    return out;
}

// Equality of bits: tells -0 from +0 and knows NaN.
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
    vanilla[1] = -infinity;
    reframed[2] = infinity;
    reframed[3] = std::numeric_limits<float>::quiet_NaN();
    expect_same_bits(mixed(vanilla, reframed, 1.0F), vanilla);
}

TEST(Mixing, BetaZeroIsReframedBitForBit) {
    auto vanilla = random_row(1003, 1);
    auto reframed = random_row(1003, 2);
    vanilla[0] = -infinity;
    reframed[1] = -0.0F;
    expect_same_bits(mixed(vanilla, reframed, 0.0F), reframed);
}

TEST(Mixing, ForbiddenTokensStayForbidden) {
    EXPECT_EQ(mixed({-infinity, 1.0F}, {-infinity, 3.0F}, 0.5F), (std::vector<float>{-infinity, 2.0F}));
}

// Found by search: either fused multiply-add would round to another float.
TEST(Mixing, RoundsEachOperation) {
    constexpr float beta = 0.3F;
    constexpr float vanilla = 0x1.6cp+3F;
    constexpr float reframed = 0x1.4p+0F;
    constexpr float expected = 0x1.126668p+2F;
    ASSERT_NE(std::fma(beta, vanilla, (1.0F - beta) * reframed), expected);
    ASSERT_NE(std::fma(1.0F - beta, reframed, beta * vanilla), expected);
    // a long row, so that the vectorised loop and its remainder are both seen
    const size_t n = 37;
    EXPECT_EQ(mixed(std::vector<float>(n, vanilla), std::vector<float>(n, reframed), beta),
              std::vector<float>(n, expected));
}

TEST(Mixing, OutMayBeEitherInput) {
    const auto vanilla = random_row(131, 3);
    const auto reframed = random_row(131, 4);
    for (const float beta : {0.0F, 0.3F, 0.5F, 1.0F}) {
        const auto expected = mixed(vanilla, reframed, beta);
        auto in_place = vanilla;
        mix_logits(in_place, reframed, beta, in_place);
        expect_same_bits(in_place, expected);
        in_place = reframed;
        mix_logits(vanilla, in_place, beta, in_place);
        expect_same_bits(in_place, expected);
    }
}

TEST(Mean, OfOneRowIsThatRowBitForBit) {
    auto row = random_row(77, 5);
    row[0] = -0.0F;
    row[1] = -infinity;
    std::vector<float> mean(row.size(), 0.0F);
    accumulate_mean(row, 1, mean);
    expect_same_bits(mean, row);
}

TEST(Mean, HandComputed) {
    std::vector<float> mean(2, 0.0F);
    accumulate_mean(std::vector<float>{4.0F, -infinity}, 4, mean);
    accumulate_mean(std::vector<float>{8.0F, 0.0F}, 4, mean);
    accumulate_mean(std::vector<float>{-4.0F, 0.0F}, 4, mean);
    accumulate_mean(std::vector<float>{2.0F, 1.0F}, 4, mean);
    EXPECT_EQ(mean, (std::vector<float>{2.5F, -infinity}));
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
