// Packed weights as numbers, 16 outputs side by side: those of two groups. In the compiler's own vectors of 64 bytes, which it maps
// to the registers that a processor has.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/packed_weights.h"

namespace harp::kernels {

// NOLINTBEGIN(misc-definitions-in-headers): a copy for each processor
namespace {

inline constexpr int OUTPUTS = 2 * GROUP;

using Floats = float __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Integers = int32_t __attribute__((vector_size(64)));

/// The block of the first group and that of the second.
template <class Packed>
struct Pair {
    const Packed & first;
    const Packed & second;
};

/// x = scale * q + offset
struct Line {
    Floats scale, offset;
};

inline Words side_by_side(__m256i first, __m256i second) {
    using Half = uint32_t __attribute__((vector_size(32)));
    return __builtin_shufflevector(reinterpret_cast<Half>(first), reinterpret_cast<Half>(second), 0, 1, 2, 3, 4, 5, 6,
                                   7, 8, 9, 10, 11, 12, 13, 14, 15);
}

/// Four bytes of each output.
inline Words load_step(const uint8_t (&first)[GROUP][STEP], const uint8_t (&second)[GROUP][STEP]) {
    return side_by_side(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(first)),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i *>(second)));
}

inline Floats load_halves(const uint16_t (&first)[GROUP], const uint16_t (&second)[GROUP]) {
    const auto convert = [](const uint16_t(&halves)[GROUP]) {
        return _mm256_castps_si256(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(halves))));
    };
    return reinterpret_cast<Floats>(side_by_side(convert(first), convert(second)));
}

/// The first or second byte of each pair, as numbers.
template <class Byte>
Floats load_bytes(const Byte (&first)[GROUP][2], const Byte (&second)[GROUP][2], int which) {
    const auto widen = [](const Byte(&pairs)[GROUP][2]) {
        return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(pairs)));
    };
    const Words at_top = side_by_side(widen(first), widen(second)) << (which == 0 ? 24 : 16);
    if constexpr (static_cast<Byte>(-1) < 0) {
        return __builtin_convertvector(reinterpret_cast<Integers>(at_top) >> 24, Floats);
    } else {
        return __builtin_convertvector(reinterpret_cast<Integers>(at_top >> 24), Floats);
    }
}

inline Words nibbles(Words bytes, bool are_high) {
    return (are_high ? bytes >> 4 : bytes) & 0x0F0F0F0F;
}

// ---- Each format: the quantised weights of step `t` of block `j` of 32, four bytes of each output, and how they become numbers ----

inline Words step(const Pair<PackedQ4_0> & block, int /*j*/, int t) {
    return nibbles(load_step(block.first.q[t % 4], block.second.q[t % 4]), t >= 4);
}
inline Words step(const Pair<PackedQ4_1> & block, int /*j*/, int t) {
    return nibbles(load_step(block.first.q[t % 4], block.second.q[t % 4]), t >= 4);
}
/// A fifth bit, which is bit `t` of a plane.
inline Words fifth_bit(Words plane, int t) {
    return ((plane >> t) & 0x01010101) << 4;
}
inline Words step(const Pair<PackedQ5_0> & block, int j, int t) {
    return step(Pair<PackedQ4_0>{block.first.low, block.second.low}, j, t) |
           fifth_bit(load_step(block.first.high, block.second.high), t);
}
inline Words step(const Pair<PackedQ5_1> & block, int j, int t) {
    return step(Pair<PackedQ4_1>{block.first.low, block.second.low}, j, t) |
           fifth_bit(load_step(block.first.high, block.second.high), t);
}
inline Words step(const Pair<PackedQ8_0> & block, int j, int t) {
    return step(Pair<PackedQ4_0>{block.first.low, block.second.low}, j, t) |
           nibbles(load_step(block.first.high[t % 4], block.second.high[t % 4]), t >= 4) << 4;
}
inline Words step(const Pair<PackedQ4_K> & block, int j, int t) {
    return nibbles(load_step(block.first.q[j / 2][t], block.second.q[j / 2][t]), j % 2 != 0);
}
inline Words step(const Pair<PackedQ5_K> & block, int j, int t) {
    return step(Pair<PackedQ4_K>{block.first.low, block.second.low}, j, t) |
           fifth_bit(load_step(block.first.high[j], block.second.high[j]), t);
}
inline Words step(const Pair<PackedQ6_K> & block, int j, int t) {
    const Words high = load_step(block.first.high[j][t / 4], block.second.high[j][t / 4]);
    return nibbles(load_step(block.first.q[j / 2][t], block.second.q[j / 2][t]), j % 2 != 0) |
           ((high >> (2 * (t % 4))) & 0x03030303) << 4;
}

/// @param half  of the 32 inputs: only Q6_K has a scale for each
inline Line line(const Pair<PackedQ4_0> & block, int /*j*/, int /*half*/, float constant = 8) {
    const Floats d = load_halves(block.first.d, block.second.d);
    return {d, -constant * d};
}
inline Line line(const Pair<PackedQ5_0> & block, int j, int half) {
    return line(Pair<PackedQ4_0>{block.first.low, block.second.low}, j, half, 16);
}
inline Line line(const Pair<PackedQ8_0> & block, int j, int half) {
    return line(Pair<PackedQ4_0>{block.first.low, block.second.low}, j, half, 128);
}
inline Line line(const Pair<PackedQ4_1> & block, int /*j*/, int /*half*/) {
    return {load_halves(block.first.d, block.second.d), load_halves(block.first.m, block.second.m)};
}
inline Line line(const Pair<PackedQ5_1> & block, int j, int half) {
    return line(Pair<PackedQ4_1>{block.first.low, block.second.low}, j, half);
}
inline Line line(const Pair<PackedQ4_K> & block, int j, int /*half*/) {
    return {load_halves(block.first.d, block.second.d) *
                load_bytes(block.first.scales[j / 2], block.second.scales[j / 2], j % 2),
            -load_halves(block.first.dmin, block.second.dmin) *
                load_bytes(block.first.mins[j / 2], block.second.mins[j / 2], j % 2)};
}
inline Line line(const Pair<PackedQ5_K> & block, int j, int half) {
    return line(Pair<PackedQ4_K>{block.first.low, block.second.low}, j, half);
}
inline Line line(const Pair<PackedQ6_K> & block, int j, int half) {
    const Floats scale =
        load_halves(block.first.d, block.second.d) * load_bytes(block.first.scales[j], block.second.scales[j], half);
    return {scale, -32 * scale};
}

}  // namespace
// NOLINTEND(misc-definitions-in-headers)

}  // namespace harp::kernels
