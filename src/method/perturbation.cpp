// Perturbation of embedding rows: dropout, uniform and gaussian noise, all from the same Philox4x32-10 numbers.
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

// One call of Philox gives the random numbers of four neighbouring coordinates.
constexpr size_t block_size = 4;
using Block = std::array<float, block_size>;

Block block_numbers(const Masks & masks, uint32_t row, size_t block) noexcept {
    const philox4x32_key_t key = {{static_cast<uint32_t>(masks.seed), static_cast<uint32_t>(masks.seed >> 32)}};
    // a row has fewer than 2^24 blocks, so the word with the block number has room for the reframing
    const philox4x32_ctr_t counter = {
        {(masks.reframing << 24) | static_cast<uint32_t>(block), row, masks.draw, masks.family}};
    const philox4x32_ctr_t bits = philox4x32(counter, key);
    Block u{};
    // 24 bits: each value is exactly a float, and none is rounded up to 1
    for (size_t k = 0; k < block_size; ++k) u[k] = static_cast<float>(bits.v[k] >> 8) * 0x1p-24F;
    return u;
}

// Sets each coordinate to f(noise), four at a time; `noise` is computed from a block's uniform numbers.
template <class Noise, class F>
void generate(const Masks & masks, uint32_t row, std::span<float> out, Noise noise, F f) noexcept {
    assert(masks.reframing < (1U << 8) && out.size() < (size_t{1} << 26));
    for (size_t begin = 0; begin < out.size(); begin += block_size) {
        const Block numbers = noise(block_numbers(masks, row, begin / block_size));
        const size_t n = std::min(block_size, out.size() - begin);
        for (size_t k = 0; k < n; ++k) out[begin + k] = f(numbers[k]);
    }
}

Block unchanged(const Block & u) noexcept {
    return u;
}

// Box-Muller: two uniform numbers give two independent normal numbers. 1 - u is in (0,1], so its logarithm is
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

// NEFTune: alpha / sqrt(L d), with L the sequence length and d the embedding width.
float neftune_scale(float alpha, uint32_t length, size_t n_embd) noexcept {
    return static_cast<float>(static_cast<double>(alpha) /
                              std::sqrt(static_cast<double>(length) * static_cast<double>(n_embd)));
}

}  // namespace

void uniform_numbers(const Masks & masks, uint32_t row, std::span<float> out) noexcept {
    generate(masks, row, out, unchanged, [](float u) { return u; });
}

void perturb(const Masks & masks, uint32_t row, Perturbation kind, float strength, const RowChange & change) noexcept {
    // Strength 0 changes nothing. (By the strict rule dropout would still drop a coordinate whose u is 0.)
    if (strength == 0.0F) return;
    assert(!needs_noise(kind) || !change.noise.empty());
    switch (kind) {
        case Perturbation::dropout:
            return generate(masks, row, change.factors, unchanged,
                            [strength](float u) { return u > strength ? 1.0F : 0.0F; });
        case Perturbation::uniform: {
            const float scale = neftune_scale(strength, masks.length, change.noise.size());
            return generate(masks, row, change.noise, unchanged,
                            [scale](float u) { return (2.0F * u - 1.0F) * scale; });
        }
        case Perturbation::gaussian:
            return generate(masks, row, change.relative_noise, normal_numbers,
                            [strength](float z) { return z * strength; });
    }
}

void mask(const Masks & masks, uint32_t row, float probability, std::span<float> factors) noexcept {
    const bool is_kept = probability == 0.0F || block_numbers(masks, row, 0).front() > probability;
    if (!is_kept) std::fill(factors.begin(), factors.end(), 0.0F);
}

}  // namespace harp::method
