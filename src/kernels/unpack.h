// Packed weights as numbers. A register holds the same inputs of N outputs: 8, half of a group, or 16. Written with
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

template <class Element, size_t N>
struct VectorOf {
    typedef Element Type
        __attribute__((vector_size(N * sizeof(Element))));  // NOLINT(modernize-use-using): GCC needs it
};
template <class Element, size_t N>
using Vector = typename VectorOf<Element, N>::Type;

/// One float, or four bytes, for each output of a register.
template <size_t N>
using Floats = Vector<float, N>;
template <size_t N>
using Words = Vector<uint32_t, N>;
template <size_t N>
using Integers = Vector<int32_t, N>;

/// N rows of a block, from row `first` on.
template <class Packed, size_t N>
struct Rows {
    const Packed & block;
    size_t first;

    /// The same rows of a part of the block.
    template <class Part>
    [[nodiscard]] Rows<Part, N> of(const Part & part) const {
        return {part, first};
    }
};

/// x = scale * q + offset
template <size_t N>
struct Line {
    Floats<N> scale, offset;
};

template <class To>
To load(const void * from) {
    To loaded;
    std::memcpy(&loaded, from, sizeof(loaded));
    return loaded;
}

/// A step: four bytes of each output.
template <size_t N>
Words<N> load_step(const uint8_t (&step)[GROUP][STEP], size_t first) {
    return load<Words<N>>(step[first]);
}

/// N float16.
template <size_t N>
Floats<N> load_halves(const void * halves) {
    if constexpr (N == 8) {
        return reinterpret_cast<Floats<N>>(_mm256_cvtph_ps(load<__m128i>(halves)));
    } else {
#if defined(__AVX512F__)
        return reinterpret_cast<Floats<N>>(_mm512_cvtph_ps(load<__m256i>(halves)));
#else
        const Floats<8> floats[] = {load_halves<8>(halves), load_halves<8>(static_cast<const uint16_t *>(halves) + 8)};
        return load<Floats<N>>(floats);
#endif
    }
}

/// The pairs of bytes of each output, as pairs of int16. Here and below, __builtin_convertvector would become several
/// instructions.
template <size_t N, class Byte>
Words<N> load_pairs(const Byte (&pairs)[GROUP][2], size_t first) {
    constexpr bool IS_SIGNED = static_cast<Byte>(-1) < 0;
    const auto * from = pairs[first];
    if constexpr (N == 8) {
        const auto bytes = load<__m128i>(from);
        return reinterpret_cast<Words<N>>(IS_SIGNED ? _mm256_cvtepi8_epi16(bytes) : _mm256_cvtepu8_epi16(bytes));
    } else {
#if defined(__AVX512BW__)
        const auto bytes = load<__m256i>(from);
        return reinterpret_cast<Words<N>>(IS_SIGNED ? _mm512_cvtepi8_epi16(bytes) : _mm512_cvtepu8_epi16(bytes));
#else
        const Words<8> words[] = {load_pairs<8>(pairs, first), load_pairs<8>(pairs, first + 8)};
        return load<Words<N>>(words);
#endif
    }
}

/// a * b + c, rounded once.
template <size_t N>
Floats<N> multiply_add(Floats<N> a, Floats<N> b, Floats<N> c) {
    if constexpr (N == 8) {
        return reinterpret_cast<Floats<N>>(
            _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
    } else {
#if defined(__AVX512F__)
        return reinterpret_cast<Floats<N>>(
            _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#else
        for (size_t i = 0; i < N; ++i) a[i] = __builtin_fmaf(a[i], b[i], c[i]);
        return a;
#endif
    }
}

/// N uint16.
template <size_t N>
Words<N> load_widened(const void * words) {
    if constexpr (N == 8) {
        return reinterpret_cast<Words<N>>(_mm256_cvtepu16_epi32(load<__m128i>(words)));
    } else {
#if defined(__AVX512F__)
        return reinterpret_cast<Words<N>>(_mm512_cvtepu16_epi32(load<__m256i>(words)));
#else
        return __builtin_convertvector(load<Vector<uint16_t, N>>(words), Words<N>);
#endif
    }
}

/// The first or second byte of each pair, converted to float.
template <size_t N, class Byte>
Floats<N> load_bytes(const Byte (&pairs)[GROUP][2], size_t first, size_t which) {
    constexpr bool IS_SIGNED = static_cast<Byte>(-1) < 0;
    const auto words = reinterpret_cast<Integers<N>>(load_widened<N>(pairs[first]));
    const Integers<N> first_byte = IS_SIGNED ? words << 24 >> 24 : words & 255;
    const Integers<N> second_byte = IS_SIGNED ? words << 16 >> 24 : words >> 8;
    return __builtin_convertvector(which == 0 ? first_byte : second_byte, Floats<N>);
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
Words<N> block_nibbles(const uint8_t (&q)[STEPS / 2][GROUP][STEP], size_t first, size_t t) {
    return nibbles(load_step<N>(q[t % 4], first), t >= 4);
}

/// x = scale * (q - constant)
template <size_t N>
Line<N> centred(Floats<N> scale, float constant) {
    return {scale, -constant * scale};
}

// ---- For each format: the quantised weights of step `t` of block `j` of 32, four bytes per output, and their line
// ----

template <size_t N>
Words<N> step(const Rows<PackedQ4_0, N> & rows, size_t /*j*/, size_t t) {
    return block_nibbles<N>(rows.block.q, rows.first, t);
}
template <size_t N>
Words<N> step(const Rows<PackedQ4_1, N> & rows, size_t /*j*/, size_t t) {
    return block_nibbles<N>(rows.block.q, rows.first, t);
}
template <size_t N>
Words<N> step(const Rows<PackedQ5_0, N> & rows, size_t j, size_t t) {
    return step(rows.of(rows.block.low), j, t) | high_bits(load_step<N>(rows.block.high, rows.first), t, 0x01010101);
}
template <size_t N>
Words<N> step(const Rows<PackedQ5_1, N> & rows, size_t j, size_t t) {
    return step(rows.of(rows.block.low), j, t) | high_bits(load_step<N>(rows.block.high, rows.first), t, 0x01010101);
}
/// Like the generic functions below, but Q8_0 stores low and high nibbles separately.
template <size_t N>
Words<N> low_step(const Rows<PackedQ8_0, N> & rows, size_t j, size_t t) {
    return step(rows.of(rows.block.low), j, t);
}
template <size_t N>
Words<N> high_step(const Rows<PackedQ8_0, N> & rows, size_t /*j*/, size_t t) {
    return block_nibbles<N>(rows.block.high, rows.first, t);
}
template <size_t N>
Words<N> step(const Rows<PackedQ8_0, N> & rows, size_t j, size_t t) {
    return step(rows.of(rows.block.low), j, t) |
           high_bits(load_step<N>(rows.block.high[t % 4], rows.first), t >= 4 ? 4 : 0, 0x0F0F0F0F);
}
template <size_t N>
Words<N> step(const Rows<PackedQ4_K, N> & rows, size_t j, size_t t) {
    return nibbles(load_step<N>(rows.block.q[j / 2][t], rows.first), j % 2 != 0);
}
template <size_t N>
Words<N> step(const Rows<PackedQ5_K, N> & rows, size_t j, size_t t) {
    return step(rows.of(rows.block.low), j, t) | high_bits(load_step<N>(rows.block.high[j], rows.first), t, 0x01010101);
}
template <size_t N>
Words<N> step(const Rows<PackedQ6_K, N> & rows, size_t j, size_t t) {
    return nibbles(load_step<N>(rows.block.q[j / 2][t], rows.first), j % 2 != 0) |
           high_bits(load_step<N>(rows.block.high[j][t / 4], rows.first), 2 * (t % 4), 0x03030303);
}

template <size_t N>
Words<N> step(const Rows<PackedIQ4_NL, N> & rows, size_t j, size_t t) {
    return look_up(step(rows.of(rows.block.nibbles), j, t), IQ4_VALUES);
}
template <size_t N>
Words<N> step(const Rows<PackedIQ4_XS, N> & rows, size_t j, size_t t) {
    return look_up(block_nibbles<N>(rows.block.q[j], rows.first, t), IQ4_VALUES);
}
template <size_t N>
Words<N> step(const Rows<PackedMXFP4, N> & rows, size_t /*j*/, size_t t) {
    return look_up(block_nibbles<N>(rows.block.q, rows.first, t), MXFP4_VALUES);
}

/// What the weights of the second block of a pair are multiplied with.
template <class Packed>
constexpr float RAISED = 1;
template <>
constexpr float RAISED<PackedQ4_K> = 16;

/// Step `t` of block `which` of a pair of blocks, times RAISED for the second: high nibbles need not be moved.
template <class Packed, size_t N>
Words<N> step_of_pair(const Rows<Packed, N> & rows, size_t pair, size_t which, size_t t) {
    return step(rows, 2 * pair + which, t);
}
template <size_t N>
Words<N> step_of_pair(const Rows<PackedQ4_K, N> & rows, size_t pair, size_t which, size_t t) {
    return load_step<N>(rows.block.q[pair][t], rows.first) & (which == 0 ? 0x0F0F0F0F : 0xF0F0F0F0);
}

/// The low and the high nibbles of a step of 8-bit weights.
template <class Packed, size_t N>
Words<N> low_step(const Rows<Packed, N> & rows, size_t j, size_t t) {
    return nibbles(step(rows, j, t), false);
}
template <class Packed, size_t N>
Words<N> high_step(const Rows<Packed, N> & rows, size_t j, size_t t) {
    return nibbles(step(rows, j, t), true);
}

/// @param half  which half of the 32 inputs: only Q6_K has a scale for each
template <size_t N>
Line<N> line(const Rows<PackedQ4_0, N> & rows, size_t /*j*/, size_t /*half*/, float constant = PackedQ4_0::CONSTANT) {
    return centred<N>(load_halves<N>(rows.block.d + rows.first), constant);
}
template <size_t N>
Line<N> line(const Rows<PackedQ5_0, N> & rows, size_t j, size_t half) {
    return line(rows.of(rows.block.low), j, half, PackedQ5_0::CONSTANT);
}
template <size_t N>
Line<N> line(const Rows<PackedQ8_0, N> & rows, size_t j, size_t half) {
    return line(rows.of(rows.block.low), j, half, PackedQ8_0::CONSTANT);
}
template <size_t N>
Line<N> line(const Rows<PackedIQ4_NL, N> & rows, size_t j, size_t half) {
    return line(rows.of(rows.block.nibbles), j, half, PackedIQ4_NL::CONSTANT);
}
template <size_t N>
Line<N> line(const Rows<PackedMXFP4, N> & rows, size_t /*j*/, size_t /*half*/) {
    const Words<N> e = __builtin_convertvector(load<Vector<uint8_t, N>>(rows.block.e + rows.first), Words<N>);
    const Words<N> denormal = (Words<N>{} + 0x00200000) << (e & 1);
    return centred<N>(reinterpret_cast<Floats<N>>(e < 2 ? denormal : (e - 1) << 23), PackedMXFP4::CONSTANT);
}
template <size_t N>
Line<N> line(const Rows<PackedQ4_1, N> & rows, size_t /*j*/, size_t /*half*/) {
    return {load_halves<N>(rows.block.d + rows.first), load_halves<N>(rows.block.m + rows.first)};
}
template <size_t N>
Line<N> line(const Rows<PackedQ5_1, N> & rows, size_t j, size_t half) {
    return line(rows.of(rows.block.low), j, half);
}

// K formats: the line of the super-block, and its factors for a block of 32 or half of one.

template <size_t N>
Line<N> super_line(const Rows<PackedQ4_K, N> & rows) {
    return {load_halves<N>(rows.block.d + rows.first), -load_halves<N>(rows.block.dmin + rows.first)};
}
template <size_t N>
Line<N> super_line(const Rows<PackedQ5_K, N> & rows) {
    return super_line(rows.of(rows.block.low));
}
template <size_t N>
Line<N> super_line(const Rows<PackedQ6_K, N> & rows) {
    return centred<N>(load_halves<N>(rows.block.d + rows.first), 32);
}

template <size_t N>
Line<N> super_line(const Rows<PackedIQ4_XS, N> & rows) {
    return centred<N>(load_halves<N>(rows.block.d + rows.first), 128);
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

/// The scales of block `j` of 32, or of one half of it.
template <class Packed, size_t N>
Floats<N> block_scales(const Rows<Packed, N> & rows, size_t j, size_t half) {
    return load_bytes<N>(pairs(rows.block, j).scales, rows.first, which_of_pair<Packed>(j, half));
}

template <class Packed, size_t N>
requires(Packed::INPUTS == SUPER_BLOCK) Line<N> line(const Rows<Packed, N> & rows, size_t j, size_t half) {
    const Line<N> of = super_line(rows);
    const auto & offsets = pairs(rows.block, j).offsets;
    return {of.scale * block_scales(rows, j, half),
            of.offset * load_bytes<N>(offsets, rows.first, which_of_pair<Packed>(j, half))};
}

}  // namespace
// NOLINTEND(misc-definitions-in-headers)

}  // namespace harp::kernels
