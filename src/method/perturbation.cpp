// Perturbation of embedding rows: dropout, uniform and gaussian noise, all from the same numbers of
// Philox4x32-10.
#include "method/perturbation.h"

#include <Random123/philox.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <numbers>

namespace harp::method {

namespace {

// One call of Philox gives the numbers of four neighbouring coordinates.
constexpr size_t block_size = 4;
using Block = std::array<float, block_size>;

Block block_numbers(const Draw & draw, uint32_t position, size_t block) noexcept {
    const philox4x32_key_t key = {{static_cast<uint32_t>(draw.seed), static_cast<uint32_t>(draw.seed >> 32)}};
    const philox4x32_ctr_t counter = {
        {static_cast<uint32_t>(block), position, draw.index, (draw.reframing << 24) | draw.sequence}};
    const philox4x32_ctr_t bits = philox4x32(counter, key);
    Block u{};
    // 24 bits: every value is a float, and none is rounded up to 1
    for (size_t k = 0; k < block_size; ++k) u[k] = static_cast<float>(bits.v[k] >> 8) * 0x1p-24F;
    return u;
}

// Replaces each coordinate by f(coordinate, noise), four at a time; `noise` is made of a block's uniform
// numbers.
template <class Noise, class F>
void transform(const Draw & draw, uint32_t position, std::span<float> row, Noise noise, F f) noexcept {
    assert(draw.sequence < (1U << 24) && draw.reframing < (1U << 8));
    for (size_t begin = 0; begin < row.size(); begin += block_size) {
        const Block numbers = noise(block_numbers(draw, position, begin / block_size));
        const size_t n = std::min(block_size, row.size() - begin);
        for (size_t k = 0; k < n; ++k) row[begin + k] = f(row[begin + k], numbers[k]);
    }
}

Block unchanged(const Block & u) noexcept {
    return u;
}

// Box-Muller: two uniform numbers give two independent normal ones. 1 - u is in (0,1], where the logarithm is
// finite.
Block normal_numbers(const Block & u) noexcept {
    Block z{};
    for (size_t k = 0; k < block_size; k += 2) {
        const float radius = std::sqrt(-2.0F * std::log(1.0F - u[k]));
        const float angle = 2.0F * std::numbers::pi_v<float> * u[k + 1];
        z[k] = radius * std::cos(angle);
        z[k + 1] = radius * std::sin(angle);
    }
    return z;
}

double root_mean_square(std::span<const float> row) noexcept {
    double sum = 0.0;
    for (const float x : row) sum += static_cast<double>(x) * static_cast<double>(x);
    return std::sqrt(sum / static_cast<double>(row.size()));
}

// NEFTune: alpha / sqrt(L d), with L the length of the sequence and d the width of an embedding.
float neftune_scale(float alpha, uint32_t length, size_t n_embd) noexcept {
    return static_cast<float>(static_cast<double>(alpha) /
                              std::sqrt(static_cast<double>(length) * static_cast<double>(n_embd)));
}

}  // namespace

void uniform_numbers(const Draw & draw, uint32_t position, std::span<float> out) noexcept {
    transform(draw, position, out, unchanged, [](float, float u) { return u; });
}

void perturb(const Draw & draw, uint32_t position, Perturbation kind, float strength, std::span<float> row) noexcept {
    // Strength 0 is no perturbation: by the strict rule dropout would still drop a coordinate whose u is 0.
    if (strength == 0.0F) return;
    switch (kind) {
        case Perturbation::dropout:
            return transform(draw, position, row, unchanged,
                             [strength](float x, float u) { return u > strength ? x : 0.0F; });
        case Perturbation::uniform: {
            const float scale = neftune_scale(strength, draw.length, row.size());
            return transform(draw, position, row, unchanged,
                             [scale](float x, float u) { return x + (2.0F * u - 1.0F) * scale; });
        }
        case Perturbation::gaussian: {
            const float scale = strength * static_cast<float>(root_mean_square(row));
            return transform(draw, position, row, normal_numbers, [scale](float x, float z) { return x + z * scale; });
        }
    }
}

}  // namespace harp::method
