// The kernels in registers of 256 bits, for AVX2 and for AVX-512 VNNI: multiply_avx2.cpp and multiply_vnni.cpp say how
// four inputs are multiplied and added. Each compiles this for its own processors, so nothing here may be shared by the
// two: all of it is in an anonymous namespace.
//
// A tile is the outputs of one or two groups of eight rows for as many tokens as the registers hold. A block of 32 inputs is taken in
// steps of four, each 32 bytes of weights of a group:
//
//     weights      [w0 w1 w2 w3] of row r in lane r     uint8, unpacked once for all tokens
//     activations  [a0 a1 a2 a3] in every lane          int8, one load with broadcast for all groups
//     sum         += w0 a0 + w1 a1 + w2 a2 + w3 a3       in lane r, in a register, for each token and group
//
// and once a block: conversion, multiplication with the scales, addition.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels/activations.h"
#include "kernels/multiply.h"
#include "kernels/packed_weights.h"
#include "kernels/unrolled.h"

namespace harp::kernels {

// NOLINTBEGIN(misc-definitions-in-headers): each of the two that include this needs a copy of its own
namespace {

/// Weights come from memory in one long stream. Asked for this many bytes ahead they are there in time; the processor's own
/// prefetchers, which stop at the ends of pages, are not enough.
constexpr size_t AHEAD = 4096;

/// Groups of 8 outputs that share the loads of the activations.
constexpr int TILE_GROUPS = 2;

/// Asks for what stands AHEAD of part `part` of `n_parts` of a block.
template <class Packed>
void prefetch(const Packed & block, int part = 0, int n_parts = 1) {
    const size_t bytes = sizeof(Packed) / static_cast<size_t>(n_parts);
    const char * ahead = reinterpret_cast<const char *>(&block) + AHEAD + static_cast<size_t>(part) * bytes;
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T0);
}

/// `value`, computed here and kept in a register: without this GCC computes the products of many steps ahead and spills them.
__m256i in_register(__m256i value) {
    asm volatile("" : "+v"(value));
    return value;
}

__m256i load(const void * bytes) {
    return _mm256_loadu_si256(static_cast<const __m256i *>(bytes));
}

__m256 load_halves(const uint16_t (&halves)[GROUP]) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(halves)));
}

/// Four bytes in every lane.
__m256i broadcast(const void * four) {
    int32_t value = 0;
    std::memcpy(&value, four, sizeof(value));
    return _mm256_set1_epi32(value);
}

/// Bits shifted left, or right where `by` is negative, and masked.
__m256i shifted(__m256i bytes, int by, char mask) {
    const __m256i moved = by < 0 ? _mm256_srli_epi16(bytes, -by) : by == 0 ? bytes : _mm256_slli_epi16(bytes, by);
    return _mm256_and_si256(moved, _mm256_set1_epi8(mask));
}

/// Low or high nibbles.
__m256i nibbles(const uint8_t (&bytes)[GROUP][STEP], bool are_high) {
    return shifted(load(bytes), are_high ? -4 : 0, 15);
}

/// The part of a block that has its scales and low nibbles: the block itself, or what a format with more bits adds to.
template <class Packed>
const auto & low(const Packed & block) {
    if constexpr (requires { block.low; }) {
        return block.low;
    } else {
        return block;
    }
}

/// What is to be computed: outputs of groups of rows for tokens.
template <class Packed, size_t GROUPS, size_t TOKENS>
struct Tile {
    const Packed * blocks[GROUPS];
    Activations activations[TOKENS];
    __m256 sums[TOKENS][GROUPS];
};

/// int32 [8] of each token and group
template <size_t GROUPS, size_t TOKENS>
using Products = __m256i[TOKENS][GROUPS];

/// Adds a step's products for one token to its sums.
template <class Arithmetic, size_t GROUPS>
void add_step(const __m256i (&weights)[GROUPS], const int8_t * activations, __m256i (&sums)[GROUPS]) {
    const __m256i in_every_lane = broadcast(activations);
    HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
        sums[g] = in_register(Arithmetic::add_step(sums[g], weights[g], in_every_lane));
    }
}

/// add_products() where one sum holds all steps: step by step, the sums of all tokens in registers.
template <class Arithmetic, size_t N_STEPS, class Packed, size_t GROUPS, size_t TOKENS, class Unpack>
void add_step_by_step(const Tile<Packed, GROUPS, TOKENS> & tile, int64_t at, const __m256i (&scales)[GROUPS],
                      Products<GROUPS, TOKENS> & products, const Unpack & unpack) {
    Products<GROUPS, TOKENS> sums = {};
    HARP_UNROLLED for (size_t t = 0; t < N_STEPS; ++t) {
        __m256i weights[GROUPS];
        HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
            weights[g] = unpack(g, t);
        }
        HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
            add_step<Arithmetic>(weights, tile.activations[n].q + at + t * STEP, sums[n]);
        }
    }
    HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
        HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
            products[n][g] = _mm256_add_epi32(products[n][g], Arithmetic::scaled(sums[n][g], scales[g]));
        }
    }
}

/// add_products() where a sum holds TOGETHER steps: token by token, the weights of four steps in registers.
template <class Arithmetic, size_t N_STEPS, size_t TOGETHER, class Packed, size_t GROUPS, size_t TOKENS, class Unpack>
void add_token_by_token(const Tile<Packed, GROUPS, TOKENS> & tile, int64_t at, const __m256i (&scales)[GROUPS],
                        Products<GROUPS, TOKENS> & products, const Unpack & unpack) {
    constexpr size_t SPAN = 4;
    static_assert(N_STEPS % SPAN == 0 && SPAN % TOGETHER == 0);
    HARP_UNROLLED for (size_t span = 0; span < N_STEPS / SPAN; ++span) {
        __m256i weights[SPAN][GROUPS];
        HARP_UNROLLED for (size_t t = 0; t < SPAN; ++t) {
            HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
                weights[t][g] = in_register(unpack(g, span * SPAN + t));
            }
        }
        HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
            const int8_t * activations = tile.activations[n].q + at + span * SPAN * STEP;
            __m256i sums[GROUPS] = {};
            HARP_UNROLLED for (size_t part = 0; part < SPAN / TOGETHER; ++part) {
                __m256i of_part[GROUPS] = {};
                HARP_UNROLLED for (size_t i = 0; i < TOGETHER; ++i) {
                    const size_t t = part * TOGETHER + i;
                    add_step<Arithmetic>(weights[t], activations + t * STEP, of_part);
                }
                HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
                    sums[g] = _mm256_add_epi32(sums[g], Arithmetic::scaled(of_part[g], scales[g]));
                }
            }
            HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
                products[n][g] = in_register(_mm256_add_epi32(products[n][g], sums[g]));
            }
        }
    }
}

/// Adds to `products` those of N_STEPS steps, times the groups' scales.
///
/// @param at      which of a token's activations is the first
/// @param unpack  (group, step) -> weights below 2^BITS
template <class Arithmetic, int BITS, size_t N_STEPS, class Packed, size_t GROUPS, size_t TOKENS, class Unpack>
void add_products(const Tile<Packed, GROUPS, TOKENS> & tile, int64_t at, const __m256i (&scales)[GROUPS],
                  Products<GROUPS, TOKENS> & products, const Unpack & unpack) {
    constexpr size_t TOGETHER = Arithmetic::steps_together(BITS);
    if constexpr (TOGETHER >= N_STEPS) {
        add_step_by_step<Arithmetic, N_STEPS>(tile, at, scales, products, unpack);
    } else {
        add_token_by_token<Arithmetic, N_STEPS, TOGETHER>(tile, at, scales, products, unpack);
    }
}

// ---- Formats with a scale for 32 weights ----

__m256i step(const PackedQ4_0 & block, size_t t) {
    return nibbles(block.q[t % 4], t / 4 == 1);
}
__m256i step(const PackedQ4_1 & block, size_t t) {
    return nibbles(block.q[t % 4], t / 4 == 1);
}

/// The fifth bit of step t.
__m256i high_bit(const uint8_t (&high)[GROUP][STEP], size_t t) {
    return shifted(load(high), 4 - static_cast<int>(t), 16);
}

__m256i step(const PackedQ5_0 & block, size_t t) {
    return _mm256_or_si256(step(block.low, t), high_bit(block.high, t));
}
__m256i step(const PackedQ5_1 & block, size_t t) {
    return _mm256_or_si256(step(block.low, t), high_bit(block.high, t));
}
[[maybe_unused]] __m256i step(const PackedQ8_0 & block, size_t t) {
    return _mm256_or_si256(step(block.low, t), shifted(load(block.high[t % 4]), t / 4 == 1 ? 0 : 4, -16));
}

/// Dot products of a block, without its scales.
template <class Arithmetic, class Packed, size_t GROUPS, size_t TOKENS>
void multiply_block(const Tile<Packed, GROUPS, TOKENS> & tile, int64_t i, Products<GROUPS, TOKENS> & products) {
    __m256i ones[GROUPS];
    HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
        prefetch(tile.blocks[g][i]);
        ones[g] = Arithmetic::one();
    }
    if constexpr (Packed::BITS <= Arithmetic::MOST_BITS) {
        add_products<Arithmetic, Packed::BITS, STEPS>(tile, i * BLOCK, ones, products,
                                                      [&](size_t g, size_t t) { return step(tile.blocks[g][i], t); });
    } else {
        add_products<Arithmetic, 4, STEPS>(tile, i * BLOCK, ones, products, [&](size_t g, size_t t) {
            return nibbles(tile.blocks[g][i].high[t % 4], t / 4 == 1);
        });
        HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
            HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
                products[n][g] = _mm256_slli_epi32(products[n][g], 4);
            }
        }
        add_products<Arithmetic, 4, STEPS>(tile, i * BLOCK, ones, products,
                                           [&](size_t g, size_t t) { return step(tile.blocks[g][i].low, t); });
    }
}

/// A block of weights from which a constant is taken: adds d * (product - constant * sum of the activations).
template <class Arithmetic, class Packed, size_t GROUPS, size_t TOKENS>
void add_shifted_block(Tile<Packed, GROUPS, TOKENS> & tile, int64_t i) {
    Products<GROUPS, TOKENS> products = {};
    multiply_block<Arithmetic>(tile, i, products);
    __m256 scales[GROUPS];
    HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
        scales[g] = load_halves(low(tile.blocks[g][i]).d);
    }
    HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
        HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
            const Activations & a = tile.activations[n];
            const __m256i constant = _mm256_set1_epi32(static_cast<const int32_t *>(a.sums)[i]);
            const __m256 sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(products[n][g], constant));
            tile.sums[n][g] = _mm256_fmadd_ps(sum, _mm256_mul_ps(scales[g], _mm256_set1_ps(a.d[i])), tile.sums[n][g]);
        }
    }
}

template <class Arithmetic, size_t GROUPS, size_t TOKENS>
void add_block(Tile<PackedQ4_0, GROUPS, TOKENS> & tile, int64_t i) {
    add_shifted_block<Arithmetic>(tile, i);
}

template <class Arithmetic, size_t GROUPS, size_t TOKENS>
void add_block(Tile<PackedQ5_0, GROUPS, TOKENS> & tile, int64_t i) {
    add_shifted_block<Arithmetic>(tile, i);
}

template <class Arithmetic, size_t GROUPS, size_t TOKENS>
void add_block(Tile<PackedQ8_0, GROUPS, TOKENS> & tile, int64_t i) {
    add_shifted_block<Arithmetic>(tile, i);
}

/// A block of weights with a least value: adds d * product + m * sum of the activations.
template <class Arithmetic, class Packed, size_t GROUPS, size_t TOKENS>
void add_block_with_min(Tile<Packed, GROUPS, TOKENS> & tile, int64_t i) {
    Products<GROUPS, TOKENS> products = {};
    multiply_block<Arithmetic>(tile, i, products);
    __m256 d[GROUPS], m[GROUPS];
    HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
        d[g] = load_halves(low(tile.blocks[g][i]).d);
        m[g] = load_halves(low(tile.blocks[g][i]).m);
    }
    HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
        HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
            const Activations & a = tile.activations[n];
            const __m256 sum = _mm256_set1_ps(static_cast<const float *>(a.sums)[i]);
            const __m256 with_min = _mm256_fmadd_ps(m[g], sum, tile.sums[n][g]);
            const __m256 scale = _mm256_mul_ps(d[g], _mm256_set1_ps(a.d[i]));
            tile.sums[n][g] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products[n][g]), scale, with_min);
        }
    }
}

template <class Arithmetic, size_t GROUPS, size_t TOKENS>
void add_block(Tile<PackedQ4_1, GROUPS, TOKENS> & tile, int64_t i) {
    add_block_with_min<Arithmetic>(tile, i);
}

template <class Arithmetic, size_t GROUPS, size_t TOKENS>
void add_block(Tile<PackedQ5_1, GROUPS, TOKENS> & tile, int64_t i) {
    add_block_with_min<Arithmetic>(tile, i);
}

// ---- K formats: super-blocks of 256 weights, with scales of 32 or 16 in integers ----

/// Pairs of bytes as int16, the first and the second of a pair in each of a lane's halves.
template <class Byte>
__m256i load_pairs(const Byte (&pairs)[GROUP][2]) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(pairs));
    return static_cast<Byte>(-1) < 0 ? _mm256_cvtepi8_epi16(bytes) : _mm256_cvtepu8_epi16(bytes);
}

/// Sums of a super-block in int32: of quantised weights with their scales, and what the weights' constant part takes off.
template <size_t GROUPS, size_t TOKENS>
struct IntegerSums {
    Products<GROUPS, TOKENS> products = {};
    Products<GROUPS, TOKENS> constants = {};

    /// @param pairs  of each group, [8][2]
    /// @param sums   (token) -> where two int16 sums of activations are
    template <class Sums>
    void add_constants(const __m256i (&pairs)[GROUPS], const Sums & sums) {
        HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
            HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
                constants[n][g] = _mm256_add_epi32(constants[n][g], _mm256_madd_epi16(pairs[g], broadcast(sums(n))));
            }
        }
    }
};

/// Step t of the first or second block of a pair.
__m256i step(const PackedQ4_K & block, int pair, bool is_second, size_t t) {
    return nibbles(block.q[pair][t], is_second);
}
__m256i step(const PackedQ5_K & block, int pair, bool is_second, size_t t) {
    return _mm256_or_si256(step(block.low, pair, is_second, t),
                           high_bit(block.high[2 * pair + (is_second ? 1 : 0)], t));
}

/// The first or second block of a pair of Q4_K or Q5_K.
template <class Arithmetic, bool SECOND, class Packed, size_t GROUPS, size_t TOKENS>
void add_k_block(const Tile<Packed, GROUPS, TOKENS> & tile, int64_t i, int pair, IntegerSums<GROUPS, TOKENS> & sums) {
    __m256i scales[GROUPS];
    HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
        scales[g] = Arithmetic::template scale<SECOND>(load_pairs(low(tile.blocks[g][i]).scales[pair]));
    }
    const int64_t at = i * SUPER_BLOCK + (2 * pair + (SECOND ? 1 : 0)) * BLOCK;
    add_products<Arithmetic, Packed::BITS, STEPS>(
        tile, at, scales, sums.products, [&](size_t g, size_t t) { return step(tile.blocks[g][i], pair, SECOND, t); });
}

/// A super-block of Q4_K or Q5_K.
template <class Arithmetic, class Packed, size_t GROUPS, size_t TOKENS>
void add_super_block(Tile<Packed, GROUPS, TOKENS> & tile, int64_t i) {
    IntegerSums<GROUPS, TOKENS> sums;
    for (int pair = 0; pair < PAIRS; ++pair) {
        __m256i mins[GROUPS];
        HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
            prefetch(tile.blocks[g][i], pair, PAIRS);
            mins[g] = load_pairs(low(tile.blocks[g][i]).mins[pair]);
        }
        add_k_block<Arithmetic, false>(tile, i, pair, sums);
        add_k_block<Arithmetic, true>(tile, i, pair, sums);
        const int64_t block = i * 2 * PAIRS + 2 * pair;
        sums.add_constants(mins,
                           [&](size_t n) { return static_cast<const int16_t *>(tile.activations[n].sums) + block; });
    }
    __m256 d[GROUPS], dmin[GROUPS];
    HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
        d[g] = load_halves(low(tile.blocks[g][i]).d);
        dmin[g] = load_halves(low(tile.blocks[g][i]).dmin);
    }
    HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
        HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
            const __m256 scale = _mm256_set1_ps(tile.activations[n].d[i]);
            const __m256 product = _mm256_cvtepi32_ps(sums.products[n][g]);
            const __m256 constant = _mm256_cvtepi32_ps(sums.constants[n][g]);
            const __m256 sum = _mm256_fmadd_ps(product, _mm256_mul_ps(d[g], scale), tile.sums[n][g]);
            tile.sums[n][g] = _mm256_fnmadd_ps(constant, _mm256_mul_ps(dmin[g], scale), sum);
        }
    }
}

template <class Arithmetic, size_t GROUPS, size_t TOKENS>
void add_block(Tile<PackedQ4_K, GROUPS, TOKENS> & tile, int64_t i) {
    add_super_block<Arithmetic>(tile, i);
}

template <class Arithmetic, size_t GROUPS, size_t TOKENS>
void add_block(Tile<PackedQ5_K, GROUPS, TOKENS> & tile, int64_t i) {
    add_super_block<Arithmetic>(tile, i);
}

/// The first or second block of a pair of Q6_K.
template <class Arithmetic, bool SECOND, size_t GROUPS, size_t TOKENS>
void add_q6_block(const Tile<PackedQ6_K, GROUPS, TOKENS> & tile, int64_t i, int pair,
                  IntegerSums<GROUPS, TOKENS> & sums) {
    const int j = 2 * pair + (SECOND ? 1 : 0);
    const int64_t at = i * SUPER_BLOCK + j * BLOCK;
    __m256i scales[GROUPS], of_first_half[GROUPS], of_second_half[GROUPS];
    HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
        scales[g] = load_pairs(tile.blocks[g][i].scales[j]);
        of_first_half[g] = Arithmetic::template scale<false>(scales[g]);
        of_second_half[g] = Arithmetic::template scale<true>(scales[g]);
    }
    const auto unpack = [&](size_t g, size_t t) {
        const PackedQ6_K & block = tile.blocks[g][i];
        const __m256i high = shifted(load(block.high[j][t / 4]), 4 - 2 * static_cast<int>(t % 4), 48);
        return _mm256_or_si256(nibbles(block.q[pair][t], SECOND), high);
    };
    constexpr size_t HALF = STEPS / 2;
    add_products<Arithmetic, PackedQ6_K::BITS, HALF>(tile, at, of_first_half, sums.products, unpack);
    add_products<Arithmetic, PackedQ6_K::BITS, HALF>(tile, at + BLOCK / 2, of_second_half, sums.products,
                                                     [&](size_t g, size_t t) { return unpack(g, HALF + t); });
    sums.add_constants(scales,
                       [&](size_t n) { return static_cast<const int16_t *>(tile.activations[n].sums) + at / 16; });
}

template <class Arithmetic, size_t GROUPS, size_t TOKENS>
void add_block(Tile<PackedQ6_K, GROUPS, TOKENS> & tile, int64_t i) {
    IntegerSums<GROUPS, TOKENS> sums;
    for (int pair = 0; pair < PAIRS; ++pair) {
        HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
            prefetch(tile.blocks[g][i], pair, PAIRS);
        }
        add_q6_block<Arithmetic, false>(tile, i, pair, sums);
        add_q6_block<Arithmetic, true>(tile, i, pair, sums);
    }
    __m256 d[GROUPS];
    HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
        d[g] = load_halves(tile.blocks[g][i].d);
    }
    HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
        HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
            // 32 of each weight were too much
            const __m256i sum = _mm256_sub_epi32(sums.products[n][g], _mm256_slli_epi32(sums.constants[n][g], 5));
            const __m256 scale = _mm256_mul_ps(d[g], _mm256_set1_ps(tile.activations[n].d[i]));
            tile.sums[n][g] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, tile.sums[n][g]);
        }
    }
}

// ---- Tiles ----

/// Where a tile's weights, tokens and outputs are.
template <class Packed>
struct Place {
    const Packed * groups;
    int64_t n_blocks;  // of a group
    const char * tokens;
    TokenLayout layout;
    float * out;
    int64_t out_stride;
    const int32_t * rows;  // of `out`, of each token

    [[nodiscard]] float * out_of(int64_t token) const {
        return out + (rows == nullptr ? token : rows[token]) * out_stride;
    }
    /// Goes on to the tokens behind the first `n`.
    void skip(int64_t n) {
        tokens += static_cast<size_t>(n) * layout.bytes;
        if (rows == nullptr) {
            out += n * out_stride;
        } else {
            rows += n;
        }
    }
};

template <class Arithmetic, class Packed, size_t GROUPS, size_t TOKENS>
HARP_FLATTEN void multiply_tile(const Place<Packed> & place) {
    Tile<Packed, GROUPS, TOKENS> tile;
    for (size_t g = 0; g < GROUPS; ++g) tile.blocks[g] = place.groups + static_cast<int64_t>(g) * place.n_blocks;
    for (size_t n = 0; n < TOKENS; ++n) {
        tile.activations[n] = view(place.layout, place.tokens + n * place.layout.bytes);
    }
    HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
        HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
            tile.sums[n][g] = _mm256_setzero_ps();
        }
    }
    for (int64_t i = 0; i < place.n_blocks; ++i) add_block<Arithmetic>(tile, i);
    HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
        float * out = place.out_of(static_cast<int64_t>(n));
        HARP_UNROLLED for (size_t g = 0; g < GROUPS; ++g) {
            _mm256_storeu_ps(out + g * GROUP, tile.sums[n][g]);
        }
    }
}

/// Groups of a tile. Where weights take long to unpack, four steps of one group are what the registers hold best.
template <class Packed>
constexpr int TILE_GROUPS_OF =
    std::is_same_v<Packed, PackedQ5_K> || std::is_same_v<Packed, PackedQ6_K> ? 1 : TILE_GROUPS;

constexpr int MOST_TOKENS = 8;  // of a tile

/// Tokens of a tile: as many as have their sums in registers, where they have; with two multiplications a weight,
/// fewer.
template <class Arithmetic, class Packed>
constexpr int TOKENS_TOGETHER = Packed::BITS > Arithmetic::MOST_BITS ? 4
                                : Arithmetic::steps_together(Packed::BITS) < STEPS
                                    ? MOST_TOKENS
                                    : std::min(MOST_TOKENS, Arithmetic::MOST_SUMS / TILE_GROUPS_OF<Packed>);

template <class Arithmetic, class Packed, size_t GROUPS, size_t... N>
void multiply_tile_of(const Place<Packed> & place, int64_t n_tokens,
                      std::index_sequence<N...> /*numbers of tokens less one*/) {
    using Function = void (*)(const Place<Packed> &);
    static constexpr Function BY_TOKENS[] = {multiply_tile<Arithmetic, Packed, GROUPS, N + 1>...};
    BY_TOKENS[n_tokens - 1](place);
}

/// All tokens, in as few and as even parts as possible.
template <class Arithmetic, class Packed, size_t GROUPS>
void multiply_groups(Place<Packed> place, int64_t n_tokens) {
    constexpr int MOST = TOKENS_TOGETHER<Arithmetic, Packed>;
    for (int64_t n_parts = (n_tokens + MOST - 1) / MOST; n_parts > 0; --n_parts) {
        const int64_t n = (n_tokens + n_parts - 1) / n_parts;
        multiply_tile_of<Arithmetic, Packed, GROUPS>(place, n, std::make_index_sequence<size_t{MOST}>());
        n_tokens -= n;
        place.skip(n);
    }
}

template <class Arithmetic, class Packed>
void multiply(const Operands & operands) noexcept {
    constexpr int GROUPS = TILE_GROUPS_OF<Packed>;
    Place<Packed> place{static_cast<const Packed *>(operands.groups),
                        operands.n_inputs / Packed::INPUTS,
                        static_cast<const char *>(operands.tokens),
                        token_layout(Packed::TYPE, operands.n_inputs),
                        operands.out,
                        operands.out_stride,
                        operands.rows};
    for (int64_t n_left = operands.n_groups; n_left > 0;) {
        const bool is_tile = n_left >= GROUPS;
        if (is_tile) {
            multiply_groups<Arithmetic, Packed, GROUPS>(place, operands.n_tokens);
        } else {
            multiply_groups<Arithmetic, Packed, 1>(place, operands.n_tokens);
        }
        const int n_done = is_tile ? GROUPS : 1;
        n_left -= n_done;
        place.groups += n_done * place.n_blocks;
        place.out += n_done * GROUP;
    }
}

template <class Arithmetic>
auto multiply_of(ggml_type weights) -> decltype(Kernel::multiply) {
    switch (weights) {
        case GGML_TYPE_Q4_0: return multiply<Arithmetic, PackedQ4_0>;
        case GGML_TYPE_Q4_1: return multiply<Arithmetic, PackedQ4_1>;
        case GGML_TYPE_Q5_0: return multiply<Arithmetic, PackedQ5_0>;
        case GGML_TYPE_Q5_1: return multiply<Arithmetic, PackedQ5_1>;
        case GGML_TYPE_Q8_0: return multiply<Arithmetic, PackedQ8_0>;
        case GGML_TYPE_Q4_K: return multiply<Arithmetic, PackedQ4_K>;
        case GGML_TYPE_Q5_K: return multiply<Arithmetic, PackedQ5_K>;
        case GGML_TYPE_Q6_K: return multiply<Arithmetic, PackedQ6_K>;
        default: return nullptr;
    }
}

template <class Arithmetic>
Kernel kernel_with(ggml_type weights) {
    return {tokens_bytes, [](int64_t) noexcept -> size_t { return 0; }, quantize_token,
            multiply_of<Arithmetic>(weights)};
}

}  // namespace
// NOLINTEND(misc-definitions-in-headers)

}  // namespace harp::kernels
