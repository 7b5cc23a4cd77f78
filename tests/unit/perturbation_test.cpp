// Perturbation: the random numbers are Philox's and depend on every part of their key and on nothing else, and
// the three kinds of noise have the right distributions.
#include "method/perturbation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace {

using harp::Perturbation;
using harp::method::Masks;
using harp::method::perturb;
using harp::method::uniform_numbers;

constexpr uint32_t width = 576;

std::vector<float> numbers(const Masks & masks, uint32_t position, size_t n_embd = width) {
    std::vector<float> u(n_embd, -1.0F);
    uniform_numbers(masks, position, u);
    return u;
}

// Perturbs a row like the graph does.
std::vector<float> perturbed(const Masks & masks, uint32_t position, Perturbation kind, float strength,
                             std::vector<float> row) {
    std::vector<float> factors(row.size(), 1.0F), noise(row.size(), 0.0F), relative_noise(row.size(), 0.0F);
    perturb(masks, position, kind, strength, {factors, noise, relative_noise});
    double squares = 0;
    for (const float x : row) squares += static_cast<double>(x) * static_cast<double>(x);
    const auto rms = static_cast<float>(std::sqrt(squares / static_cast<double>(row.size())));
    for (size_t i = 0; i < row.size(); ++i) {
        row[i] *= factors[i];
        if (noise[i] != 0.0F || relative_noise[i] != 0.0F) row[i] = row[i] + noise[i] + relative_noise[i] * rms;
    }
    return row;
}

// The numbers of several rows, [n_positions][width], one row after another.
std::vector<float> many_numbers(const Masks & masks, uint32_t n_positions) {
    std::vector<float> u(size_t{n_positions} * width);
    for (uint32_t p = 0; p < n_positions; ++p) {
        uniform_numbers(masks, p, std::span(u).subspan(size_t{p} * width, width));
    }
    return u;
}

double correlation(std::span<const float> a, std::span<const float> b) {
    double sum = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
        sum += (static_cast<double>(a[i]) - 0.5) * (static_cast<double>(b[i]) - 0.5);
    }
    return sum / static_cast<double>(a.size()) * 12.0;
}

// ---- the generator ----

// From Random123's kat_vectors: philox4x32, 10 rounds, counter 0, key 0.
TEST(UniformNumbers, KnownAnswer) {
    const std::array<uint32_t, 4> philox = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
    const auto u = numbers({}, 0, 4);
    for (size_t k = 0; k < 4; ++k) EXPECT_EQ(u[k], static_cast<float>(philox[k] >> 8) / 16777216.0F) << k;
}

// The same file: counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0 (the digits of pi). The first word
// of the counter holds the block of coordinates and the reframing. These are the vectors for that word being 0, 1,
// 03000000 and 03000001, computed with another implementation of Philox.
TEST(UniformNumbers, LayoutOfKeyAndCounter) {
    const std::array<uint32_t, 8> philox = {0x3f6d24d7, 0x529108a0, 0xf8a37e29, 0xe7a9b43b,
                                            0x14e0a6ea, 0xbbea52f1, 0x89a95d62, 0xe59911d1};
    const auto u = numbers({.seed = 0x299f31d0a4093822, .draw = 0x13198a2e, .family = 0x03707344}, 0x85a308d3, 8);
    for (size_t k = 0; k < 8; ++k) EXPECT_EQ(u[k], static_cast<float>(philox[k] >> 8) / 16777216.0F) << k;

    // a 32-bit family and a reframing do not change each other
    const std::array<uint32_t, 8> third = {0x28c25087, 0xa92fd94d, 0x5f092a43, 0xf35eeb93,
                                           0x4ae55a3f, 0x382d2f33, 0xbe9afebf, 0x6c0c86e4};
    const auto v =
        numbers({.seed = 0x299f31d0a4093822, .draw = 0x13198a2e, .family = 0xfedcba98, .reframing = 3}, 0x85a308d3, 8);
    for (size_t k = 0; k < 8; ++k) EXPECT_EQ(v[k], static_cast<float>(third[k] >> 8) / 16777216.0F) << k;
}

// Families from 2^24 on used to lose the reframing, so that several reframings had equal masks.
TEST(UniformNumbers, ReframingsDifferInEveryFamily) {
    for (const uint32_t family : {5U, (1U << 24) + 5U, 0xffffffffU}) {
        EXPECT_NE(numbers({.family = family, .reframing = 0}, 1), numbers({.family = family, .reframing = 1}, 1))
            << family;
    }
}

TEST(UniformNumbers, ShorterRowIsAPrefix) {
    const Masks masks{.seed = 11, .draw = 2, .family = 3, .reframing = 1};
    const auto longest = numbers(masks, 7, 100);
    for (size_t n = 0; n < 100; ++n) {
        const auto u = numbers(masks, 7, n);
        EXPECT_TRUE(std::equal(u.begin(), u.end(), longest.begin())) << n;
    }
}

TEST(UniformNumbers, DoNotDependOnEarlierCalls) {
    const Masks masks{.seed = 5};
    const auto before = numbers(masks, 3);
    (void)numbers({.seed = 6}, 100);
    (void)numbers(masks, 4);
    EXPECT_EQ(numbers(masks, 3), before);
}

TEST(UniformNumbers, EveryPartOfTheKeyCounts) {
    const Masks base{.seed = 1, .draw = 1, .family = 1, .reframing = 1};
    const auto u = numbers(base, 1);
    Masks seed = base;
    seed.seed = 2;
    Masks high_seed = base;
    high_seed.seed = 1 | uint64_t{1} << 32;
    Masks index = base;
    index.draw = 2;
    Masks sequence = base;
    sequence.family = 2;
    Masks reframing = base;
    reframing.reframing = 2;
    Masks swapped = base;  // sequence and reframing must not be confused
    swapped.family = (1U << 24) - 1;
    for (const Masks & other : {seed, high_seed, index, sequence, reframing, swapped}) {
        const auto v = numbers(other, 1);
        size_t equal = 0;
        for (size_t i = 0; i < width; ++i) equal += u[i] == v[i] ? 1U : 0U;
        EXPECT_LE(equal, 1U);
    }
    EXPECT_NE(numbers(base, 2), u);
    Masks length = base;  // not part of the key: a token's mask must not change as the text grows
    length.length = 99;
    EXPECT_EQ(numbers(length, 1), u);
}

TEST(UniformNumbers, AreUniform) {
    constexpr size_t bins = 256;
    const auto u = many_numbers({.seed = 42}, 2000);
    std::vector<double> count(bins, 0.0);
    for (const float x : u) {
        ASSERT_GE(x, 0.0F);
        ASSERT_LT(x, 1.0F);
        count[static_cast<size_t>(x * static_cast<float>(bins))] += 1.0;
    }
    const double expected = static_cast<double>(u.size()) / bins;
    double chi_square = 0.0;
    for (const double c : count) chi_square += (c - expected) * (c - expected) / expected;
    // 255 degrees of freedom: mean 255, deviation sqrt(510); five deviations are allowed in both directions
    EXPECT_NEAR(chi_square, 255.0, 5.0 * std::sqrt(510.0));
}

// The correlation of n pairs has deviation 1 / sqrt(n).
TEST(UniformNumbers, NeighboursDoNotCorrelate) {
    constexpr uint32_t positions = 400;
    const auto u = many_numbers({}, positions);
    const std::span all(u);
    const double limit = 5.0 / std::sqrt(static_cast<double>(u.size()) - width);
    for (const size_t lag : {size_t{1}, size_t{2}, size_t{3}, size_t{4}, size_t{width}}) {
        EXPECT_LT(std::abs(correlation(all.first(u.size() - lag), all.subspan(lag))), limit) << "lag " << lag;
    }
    const std::array<Masks, 5> neighbours = {Masks{.seed = 1}, Masks{.seed = uint64_t{1} << 32}, Masks{.draw = 1},
                                             Masks{.family = 1}, Masks{.reframing = 1}};
    for (size_t k = 0; k < neighbours.size(); ++k) {
        EXPECT_LT(std::abs(correlation(all, many_numbers(neighbours[k], positions))), limit) << "neighbour " << k;
    }
}

// ---- dropout ----

TEST(Dropout, KeepsWhereGreaterThanDeltaAndDoesNotRescale) {
    const Masks masks{.seed = 3, .family = 5};
    std::vector<float> row(width);
    for (size_t i = 0; i < width; ++i) row[i] = 1.0F + static_cast<float>(i);
    const auto u = numbers(masks, 9);
    const auto result = perturbed(masks, 9, Perturbation::dropout, 0.2F, row);
    for (size_t i = 0; i < width; ++i) EXPECT_EQ(result[i], u[i] > 0.2F ? row[i] : 0.0F) << i;
}

// The comparison is strict: a coordinate whose u equals delta is dropped.
TEST(Dropout, DropsAtEquality) {
    const auto u = numbers({}, 0, 4);
    for (size_t k = 0; k < 4; ++k) {
        EXPECT_EQ(perturbed({}, 0, Perturbation::dropout, u[k], std::vector<float>(4, 1.0F))[k], 0.0F) << k;
    }
    for (size_t k = 0; k < 4; ++k) {
        const float below = std::nextafter(u[k], 0.0F);
        EXPECT_EQ(perturbed({}, 0, Perturbation::dropout, below, std::vector<float>(4, 1.0F))[k], 1.0F) << k;
    }
}

TEST(Dropout, KeepRateIsOneMinusDelta) {
    constexpr uint32_t positions = 2000;
    constexpr double n = double{positions} * width;
    static_assert(n >= 1e6);
    for (const float delta : {0.05F, 0.2F, 0.5F, 0.9F}) {
        double kept = 0.0;
        for (uint32_t p = 0; p < positions; ++p) {
            for (const float x :
                 perturbed({.seed = 8}, p, Perturbation::dropout, delta, std::vector<float>(width, 1.0F))) {
                kept += static_cast<double>(x);
            }
        }
        const double rate = 1.0 - static_cast<double>(delta);
        EXPECT_NEAR(kept / n, rate, 5.0 * std::sqrt(rate * (1.0 - rate) / n)) << "delta " << delta;
    }
}

TEST(Dropout, OneDropsEverything) {
    for (uint32_t p = 0; p < 100; ++p) {
        EXPECT_EQ(perturbed({}, p, Perturbation::dropout, 1.0F, std::vector<float>(width, 3.0F)),
                  std::vector<float>(width, 0.0F));
    }
}

// ---- noise ----

TEST(Perturb, StrengthZeroChangesNoBit) {
    std::vector<float> row(width, -0.0F);
    row[1] = 1e-40F;
    for (const auto kind : {Perturbation::dropout, Perturbation::uniform, Perturbation::gaussian}) {
        const auto result = perturbed({}, 0, kind, 0.0F, row);
        for (size_t i = 0; i < width; ++i) {
            EXPECT_EQ(std::bit_cast<uint32_t>(result[i]), std::bit_cast<uint32_t>(row[i])) << i;
        }
    }
}

// Widths that are not multiples of a Philox block: the noise is the same, and nothing is written beyond the row.
TEST(Perturb, AnyWidth) {
    for (size_t n = 1; n <= 13; ++n) {
        std::vector<float> row(n + 1, 1.0F);
        const auto first = std::span(row).first(n);
        perturb({}, 1, Perturbation::dropout, 0.5F, {first, first, first});
        const auto whole = perturbed({}, 1, Perturbation::dropout, 0.5F, std::vector<float>(16, 1.0F));
        EXPECT_TRUE(std::equal(row.begin(), row.begin() + static_cast<ptrdiff_t>(n), whole.begin())) << n;
        EXPECT_EQ(row[n], 1.0F) << n;
        perturb({}, 1, Perturbation::gaussian, 0.5F, {first, first, first});
        perturb({}, 1, Perturbation::uniform, 0.5F, {first, first, first});
        EXPECT_EQ(row[n], 1.0F) << n;
    }
}

// NEFTune: alpha 5, length 16, width 4 gives U(-1,1) * 5 / 8.
TEST(Uniform, ScaleIsThatOfNeftune) {
    const Masks masks{.seed = 2, .length = 16};
    const auto u = numbers(masks, 3, 4);
    const auto row = perturbed(masks, 3, Perturbation::uniform, 5.0F, {1.0F, 2.0F, 3.0F, 4.0F});
    for (size_t k = 0; k < 4; ++k) {
        EXPECT_NEAR(row[k], static_cast<float>(k + 1) + (2.0F * u[k] - 1.0F) * 0.625F, 1e-6F) << k;
    }
}

TEST(Uniform, FillsItsInterval) {
    const float scale = 15.0F / std::sqrt(100.0F * static_cast<float>(width));
    float low = 0.0F;
    float high = 0.0F;
    for (uint32_t p = 0; p < 100; ++p) {
        for (const float x :
             perturbed({.length = 100}, p, Perturbation::uniform, 15.0F, std::vector<float>(width, 0.0F))) {
            low = std::min(low, x);
            high = std::max(high, x);
        }
    }
    EXPECT_GE(low, -scale * 1.000001F);
    EXPECT_LE(high, scale * 1.000001F);
    EXPECT_LT(low, -0.999F * scale);
    EXPECT_GT(high, 0.999F * scale);
}

// A row of RMS 2.5: noise of deviation sigma * 2.5 and mean 0, with a normal's fourth moment and no correlation within
// a pair.
TEST(Gaussian, IsNormalWithSigmaTimesRms) {
    constexpr uint32_t positions = 2000;
    constexpr double n = double{positions} * width;
    std::vector<float> row(width);
    for (size_t i = 0; i < width; ++i) row[i] = i % 2 == 0 ? 3.5F : 0.5F;  // mean square (12.25 + 0.25) / 2
    double sum = 0.0;
    double squares = 0.0;
    double fourths = 0.0;
    double pairs = 0.0;
    for (uint32_t p = 0; p < positions; ++p) {
        const auto result = perturbed({.seed = 4}, p, Perturbation::gaussian, 0.2F, row);
        double previous = 0.0;
        for (size_t i = 0; i < width; ++i) {
            const double z = static_cast<double>(result[i] - row[i]) / 0.5;
            sum += z;
            squares += z * z;
            fourths += z * z * z * z;
            if (i % 2 == 1) pairs += z * previous;
            previous = z;
        }
    }
    EXPECT_NEAR(sum / n, 0.0, 5.0 / std::sqrt(n));
    EXPECT_NEAR(squares / n, 1.0, 5.0 * std::sqrt(2.0 / n));
    EXPECT_NEAR(fourths / n, 3.0, 5.0 * std::sqrt(96.0 / n));
    EXPECT_NEAR(pairs / (n / 2), 0.0, 5.0 / std::sqrt(n / 2));
}

TEST(Gaussian, RowOfZerosStaysZero) {
    EXPECT_EQ(perturbed({}, 0, Perturbation::gaussian, 1.0F, std::vector<float>(width, 0.0F)),
              std::vector<float>(width, 0.0F));
}

}  // namespace
