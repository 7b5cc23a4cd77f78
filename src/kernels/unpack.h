// Packed weights as numbers. A register holds the same inputs of GROUPS groups of 8 outputs, side by side. Written with
// the compiler's vector types, which it maps to the registers of the processor.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/packed_weights.h"

namespace harp::kernels {

// NOLINTBEGIN(misc-definitions-in-headers): each instruction set needs a copy
namespace {

template <size_t GROUPS>
struct Vectors;
template <>
struct Vectors<1> {
    using Floats = float __attribute__((vector_size(32)));
    using Words = uint32_t __attribute__((vector_size(32)));
    using Integers = int32_t __attribute__((vector_size(32)));
};
template <>
struct Vectors<2> {
    using Floats = float __attribute__((vector_size(64)));
    using Words = uint32_t __attribute__((vector_size(64)));
    using Integers = int32_t __attribute__((vector_size(64)));
};

/// One float, or four bytes, for each of the outputs side by side.
template <size_t GROUPS>
using Floats = typename Vectors<GROUPS>::Floats;
template <size_t GROUPS>
using Words = typename Vectors<GROUPS>::Words;
template <size_t GROUPS>
using Integers = typename Vectors<GROUPS>::Integers;

/// The same block in each group.
template <class Packed, size_t GROUPS>
struct Blocks {
    const Packed & first;
    ptrdiff_t next;  // bytes from one group to the next

    /// The same part of each block, given that of the first block.
    template <class Part>
    [[nodiscard]] Blocks<Part, GROUPS> part(const Part & of_first) const {
        return {of_first, next};
    }
};

/// x = scale * q + offset
template <size_t GROUPS>
struct Line {
    Floats<GROUPS> scale, offset;
};

/// Applies `load` to the bytes of each group, and puts the results side by side.
template <size_t GROUPS, class Load>
auto side_by_side(const void * first, ptrdiff_t next, const Load & load) {
    using Half = uint32_t __attribute__((vector_size(32)));
    const auto * bytes = static_cast<const char *>(first);
    const auto of_first = reinterpret_cast<Half>(load(reinterpret_cast<const __m128i *>(bytes)));
    if constexpr (GROUPS == 1) {
        return of_first;
    } else {
        static_assert(GROUPS == 2);
        const auto of_second = reinterpret_cast<Half>(load(reinterpret_cast<const __m128i *>(bytes + next)));
#if defined(__AVX512F__)
        // __builtin_shufflevector becomes a shuffle, which fewer execution units can do
        const __m512i wide = _mm512_castsi256_si512(reinterpret_cast<__m256i>(of_first));
        return reinterpret_cast<Words<GROUPS>>(_mm512_inserti64x4(wide, reinterpret_cast<__m256i>(of_second), 1));
#else
        return __builtin_shufflevector(of_first, of_second, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
    }
}

/// A step: four bytes of each output.
template <size_t GROUPS>
Words<GROUPS> load_step(const uint8_t (&step)[GROUP][STEP], ptrdiff_t next) {
    return side_by_side<GROUPS>(
        step, next, [](const __m128i * bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(bytes)); });
}

template <size_t GROUPS>
Floats<GROUPS> load_halves(const void * halves, ptrdiff_t next) {
    return reinterpret_cast<Floats<GROUPS>>(side_by_side<GROUPS>(
        halves, next, [](const __m128i * bytes) { return _mm256_cvtph_ps(_mm_loadu_si128(bytes)); }));
}

/// The pairs of bytes of each output, as pairs of int16.
template <size_t GROUPS, class Byte>
Words<GROUPS> load_pairs(const Byte (&pairs)[GROUP][2], ptrdiff_t next) {
    constexpr bool IS_SIGNED = static_cast<Byte>(-1) < 0;
    return side_by_side<GROUPS>(pairs, next, [](const __m128i * bytes) {
        const __m128i pair = _mm_loadu_si128(bytes);
        return IS_SIGNED ? _mm256_cvtepi8_epi16(pair) : _mm256_cvtepu8_epi16(pair);
    });
}

/// a * b + c, rounded once.
template <size_t GROUPS>
Floats<GROUPS> multiply_add(Floats<GROUPS> a, Floats<GROUPS> b, Floats<GROUPS> c) {
    if constexpr (GROUPS == 1) {
        return reinterpret_cast<Floats<GROUPS>>(_mm256_fmadd_ps(
            reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
    } else {
#if defined(__AVX512F__)
        return reinterpret_cast<Floats<GROUPS>>(_mm512_fmadd_ps(
            reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#else
        for (size_t i = 0; i < GROUPS * GROUP; ++i) a[i] = __builtin_fmaf(a[i], b[i], c[i]);
        return a;
#endif
    }
}

/// The first or second byte of each pair, converted to float.
template <size_t GROUPS, class Byte>
Floats<GROUPS> load_bytes(const Byte (&pairs)[GROUP][2], ptrdiff_t next, size_t which) {
    constexpr bool IS_SIGNED = static_cast<Byte>(-1) < 0;
    const Words<GROUPS> words = side_by_side<GROUPS>(pairs, next, [](const __m128i * bytes) {
        const __m128i pair = _mm_loadu_si128(bytes);
        return IS_SIGNED ? _mm256_cvtepi16_epi32(pair) : _mm256_cvtepu16_epi32(pair);
    });
    const auto integers = reinterpret_cast<Integers<GROUPS>>(words);
    const auto first = IS_SIGNED ? reinterpret_cast<Integers<GROUPS>>(words << 24) >> 24 : integers & 255;
    return __builtin_convertvector(which == 0 ? first : integers >> 8, Floats<GROUPS>);
}

template <class Words>
Words nibbles(Words bytes, bool are_high) {
    return (are_high ? bytes >> 4 : bytes) & 0x0F0F0F0F;
}

/// The bits of `mask`, from bit `bit` of `plane` on, moved to bits 4 and above.
template <class Words>
Words high_bits(Words plane, size_t bit, uint32_t mask) {
    return (bit < 4 ? plane << (4 - bit) : plane >> (bit - 4)) & (mask << 4);
}

// The value of each nibble, made positive: plus 128 for IQ4, plus 12 for MXFP4.
alignas(16) constexpr uint8_t IQ4_VALUES[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                129, 141, 153, 166, 181, 197, 217, 241};
alignas(16) constexpr uint8_t MXFP4_VALUES[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

/// The bytes of `table` at the indices in `nibbles`.
template <class Words>
Words look_up(Words nibbles, const uint8_t (&table)[16]) {
    const __m128i entries = _mm_load_si128(reinterpret_cast<const __m128i *>(table));
    if constexpr (sizeof(Words) == sizeof(__m256i)) {
        const __m256i twice = _mm256_broadcastsi128_si256(entries);
        return reinterpret_cast<Words>(_mm256_shuffle_epi8(twice, reinterpret_cast<__m256i>(nibbles)));
    } else {
#if defined(__AVX512BW__)
        const __m512i four_times = _mm512_broadcast_i32x4(entries);
        return reinterpret_cast<Words>(_mm512_shuffle_epi8(four_times, reinterpret_cast<__m512i>(nibbles)));
#else
        using Half = uint32_t __attribute__((vector_size(32)));
        Half halves[2];
        std::memcpy(halves, &nibbles, sizeof(halves));
        for (Half & half : halves) half = look_up(half, table);
        std::memcpy(&nibbles, halves, sizeof(halves));
        return nibbles;
#endif
    }
}

/// Calls `use` with the index of each 32 inputs of a block. Neighbours, whose nibbles share bytes, have calls of their
/// own, so that the compiler knows which nibble is meant.
template <class Packed, class Use>
void for_each_32_inputs(const Use & use) {
    constexpr size_t N = Packed::INPUTS / BLOCK;
    if constexpr (N == 1) {
        use(size_t{0});
    } else {
        for (size_t pair = 0; pair < N / 2; ++pair) {
            use(2 * pair);
            use(2 * pair + 1);
        }
    }
}

/// Nibbles of step `t` of a block of 32; the first four steps are in the low nibbles.
template <size_t N>
Words<N> block_nibbles(const uint8_t (&q)[STEPS / 2][GROUP][STEP], ptrdiff_t next, size_t t) {
    return nibbles(load_step<N>(q[t % 4], next), t >= 4);
}

/// x = scale * (q - constant)
template <size_t N>
Line<N> centred(Floats<N> scale, float constant) {
    return {scale, -constant * scale};
}

// ---- For each format: the quantised weights of step `t` of block `j` of 32, four bytes per output, and their line
// ----

template <size_t N>
Words<N> step(const Blocks<PackedQ4_0, N> & block, size_t /*j*/, size_t t) {
    return block_nibbles<N>(block.first.q, block.next, t);
}
template <size_t N>
Words<N> step(const Blocks<PackedQ4_1, N> & block, size_t /*j*/, size_t t) {
    return block_nibbles<N>(block.first.q, block.next, t);
}
template <size_t N>
Words<N> step(const Blocks<PackedQ5_0, N> & block, size_t j, size_t t) {
    return step(block.part(block.first.low), j, t) |
           high_bits(load_step<N>(block.first.high, block.next), t, 0x01010101);
}
template <size_t N>
Words<N> step(const Blocks<PackedQ5_1, N> & block, size_t j, size_t t) {
    return step(block.part(block.first.low), j, t) |
           high_bits(load_step<N>(block.first.high, block.next), t, 0x01010101);
}
/// Like the generic functions below, but Q8_0 stores low and high nibbles separately.
template <size_t N>
Words<N> low_step(const Blocks<PackedQ8_0, N> & block, size_t j, size_t t) {
    return step(block.part(block.first.low), j, t);
}
template <size_t N>
Words<N> high_step(const Blocks<PackedQ8_0, N> & block, size_t /*j*/, size_t t) {
    return block_nibbles<N>(block.first.high, block.next, t);
}
template <size_t N>
Words<N> step(const Blocks<PackedQ8_0, N> & block, size_t j, size_t t) {
    return step(block.part(block.first.low), j, t) |
           high_bits(load_step<N>(block.first.high[t % 4], block.next), t >= 4 ? 4 : 0, 0x0F0F0F0F);
}
template <size_t N>
Words<N> step(const Blocks<PackedQ4_K, N> & block, size_t j, size_t t) {
    return nibbles(load_step<N>(block.first.q[j / 2][t], block.next), j % 2 != 0);
}
template <size_t N>
Words<N> step(const Blocks<PackedQ5_K, N> & block, size_t j, size_t t) {
    return step(block.part(block.first.low), j, t) |
           high_bits(load_step<N>(block.first.high[j], block.next), t, 0x01010101);
}
template <size_t N>
Words<N> step(const Blocks<PackedQ6_K, N> & block, size_t j, size_t t) {
    return nibbles(load_step<N>(block.first.q[j / 2][t], block.next), j % 2 != 0) |
           high_bits(load_step<N>(block.first.high[j][t / 4], block.next), 2 * (t % 4), 0x03030303);
}

template <size_t N>
Words<N> step(const Blocks<PackedIQ4_NL, N> & block, size_t j, size_t t) {
    return look_up(step(block.part(block.first.nibbles), j, t), IQ4_VALUES);
}
template <size_t N>
Words<N> step(const Blocks<PackedIQ4_XS, N> & block, size_t j, size_t t) {
    return look_up(block_nibbles<N>(block.first.q[j], block.next, t), IQ4_VALUES);
}
template <size_t N>
Words<N> step(const Blocks<PackedMXFP4, N> & block, size_t /*j*/, size_t t) {
    return look_up(block_nibbles<N>(block.first.q, block.next, t), MXFP4_VALUES);
}

/// What the weights of the second block of a pair are multiplied with.
template <class Packed>
constexpr float RAISED = 1;
template <>
constexpr float RAISED<PackedQ4_K> = 16;

/// Step `t` of block `which` of a pair of blocks, times RAISED for the second: high nibbles need not be moved.
template <class Packed, size_t N>
Words<N> step_of_pair(const Blocks<Packed, N> & block, size_t pair, size_t which, size_t t) {
    return step(block, 2 * pair + which, t);
}
template <size_t N>
Words<N> step_of_pair(const Blocks<PackedQ4_K, N> & block, size_t pair, size_t which, size_t t) {
    return load_step<N>(block.first.q[pair][t], block.next) & (which == 0 ? 0x0F0F0F0F : 0xF0F0F0F0);
}

/// The low and the high nibbles of a step of 8-bit weights.
template <class Packed, size_t N>
Words<N> low_step(const Blocks<Packed, N> & block, size_t j, size_t t) {
    return nibbles(step(block, j, t), false);
}
template <class Packed, size_t N>
Words<N> high_step(const Blocks<Packed, N> & block, size_t j, size_t t) {
    return nibbles(step(block, j, t), true);
}

/// @param half  which half of the 32 inputs: only Q6_K has a scale for each
template <size_t N>
Line<N> line(const Blocks<PackedQ4_0, N> & block, size_t /*j*/, size_t /*half*/,
             float constant = PackedQ4_0::CONSTANT) {
    return centred<N>(load_halves<N>(block.first.d, block.next), constant);
}
template <size_t N>
Line<N> line(const Blocks<PackedQ5_0, N> & block, size_t j, size_t half) {
    return line(block.part(block.first.low), j, half, PackedQ5_0::CONSTANT);
}
template <size_t N>
Line<N> line(const Blocks<PackedQ8_0, N> & block, size_t j, size_t half) {
    return line(block.part(block.first.low), j, half, PackedQ8_0::CONSTANT);
}
template <size_t N>
Line<N> line(const Blocks<PackedIQ4_NL, N> & block, size_t j, size_t half) {
    return line(block.part(block.first.nibbles), j, half, PackedIQ4_NL::CONSTANT);
}
template <size_t N>
Line<N> line(const Blocks<PackedMXFP4, N> & block, size_t /*j*/, size_t /*half*/) {
    const Words<N> e = side_by_side<N>(
        block.first.e, block.next, [](const __m128i * bytes) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes)); });
    const Words<N> denormal = (Words<N>{} + 0x00200000) << (e & 1);
    return centred<N>(reinterpret_cast<Floats<N>>(e < 2 ? denormal : (e - 1) << 23), PackedMXFP4::CONSTANT);
}
template <size_t N>
Line<N> line(const Blocks<PackedQ4_1, N> & block, size_t /*j*/, size_t /*half*/) {
    return {load_halves<N>(block.first.d, block.next), load_halves<N>(block.first.m, block.next)};
}
template <size_t N>
Line<N> line(const Blocks<PackedQ5_1, N> & block, size_t j, size_t half) {
    return line(block.part(block.first.low), j, half);
}

// K formats: the line of the super-block, and its factors for a block of 32 or half of one.

template <size_t N>
Line<N> super_line(const Blocks<PackedQ4_K, N> & block) {
    return {load_halves<N>(block.first.d, block.next), -load_halves<N>(block.first.dmin, block.next)};
}
template <size_t N>
Line<N> super_line(const Blocks<PackedQ5_K, N> & block) {
    return super_line(block.part(block.first.low));
}
template <size_t N>
Line<N> super_line(const Blocks<PackedQ6_K, N> & block) {
    return centred<N>(load_halves<N>(block.first.d, block.next), 32);
}

template <size_t N>
Line<N> super_line(const Blocks<PackedIQ4_XS, N> & block) {
    return centred<N>(load_halves<N>(block.first.d, block.next), 128);
}

/// For each output, the scales of block `j` and the factors of the offset: of two blocks, or of the two halves of one.
template <class Byte>
struct Pairs {
    const Byte (&scales)[GROUP][2];
    const Byte (&offsets)[GROUP][2];
};
inline Pairs<uint8_t> pairs(const PackedQ4_K & block, size_t j) {
    return {block.scales[j / 2], block.mins[j / 2]};
}
inline Pairs<uint8_t> pairs(const PackedQ5_K & block, size_t j) {
    return pairs(block.low, j);
}
inline Pairs<int8_t> pairs(const PackedQ6_K & block, size_t j) {
    return {block.scales[j], block.scales[j]};
}
inline Pairs<int8_t> pairs(const PackedIQ4_XS & block, size_t j) {
    return {block.scales[j / 2], block.scales[j / 2]};
}
template <class Packed>
size_t which_of_pair(size_t j, size_t half) {
    return Packed::SCALES == 2 ? half : j % 2;
}

template <class Packed, size_t N>
requires(Packed::INPUTS == SUPER_BLOCK) Line<N> line(const Blocks<Packed, N> & block, size_t j, size_t half) {
    const Line<N> of = super_line(block);
    const auto [scales, offsets] = pairs(block.first, j);
    const size_t which = which_of_pair<Packed>(j, half);
    return {of.scale * load_bytes<N>(scales, block.next, which), of.offset * load_bytes<N>(offsets, block.next, which)};
}

}  // namespace
// NOLINTEND(misc-definitions-in-headers)

}  // namespace harp::kernels
