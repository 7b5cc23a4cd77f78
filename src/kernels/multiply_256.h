// Products in registers of 256 bits, for AVX2 and for AVX-512 VNNI: multiply_avx2.cpp and multiply_vnni.cpp say how four inputs are
// multiplied and added. Each compiles this for its own processors, so nothing here may be shared by the two: all of it is in an
// anonymous namespace.
//
// A block of 32 inputs of eight rows is 128 bytes of nibbles. They are unpacked once, into eight registers, and used for all tokens:
// for each token eight times
//
//     activations  [a0 a1 a2 a3] in every lane          int8, one load with broadcast
//     weights      [w0 w1 w2 w3] of row r in lane r     uint8
//     product      w0 a0 + w1 a1 + w2 a2 + w3 a3        in lane r
//
// and then once conversion, multiplication with the scales, addition.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels/activations.h"
#include "kernels/multiply.h"
#include "kernels/packed_weights.h"

namespace harp::kernels {

// NOLINTBEGIN(misc-definitions-in-headers): each of the two that include this needs a copy of its own
namespace {

/// Weights come from memory in one long stream. Asked for this many bytes ahead they are there in time; the processor's own
/// prefetchers, which stop at the ends of pages, are not enough.
constexpr size_t AHEAD = 4096;

/// Asks for what stands AHEAD of part `part` of `n_parts` of a block.
template <class Packed>
void prefetch(const Packed & block, int part = 0, int n_parts = 1) {
    const size_t bytes = sizeof(Packed) / static_cast<size_t>(n_parts);
    const char * ahead = reinterpret_cast<const char *>(&block) + AHEAD + static_cast<size_t>(part) * bytes;
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T0);
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

__m256i low_nibbles(__m256i bytes) {
    return _mm256_and_si256(bytes, _mm256_set1_epi8(15));
}
__m256i high_nibbles(__m256i bytes) {
    return low_nibbles(_mm256_srli_epi16(bytes, 4));
}

/// Tokens of a product: where their activations are and their sums so far.
template <size_t N>
struct Tokens {
    Activations activations[N];
    __m256 sums[N];

    Tokens(ggml_type weights, int64_t n_inputs, const void * first) {
        const size_t stride = token_bytes(weights, n_inputs);
        for (size_t i = 0; i < N; ++i) {
            activations[i] = view(weights, n_inputs, static_cast<const char *>(first) + i * stride);
            sums[i] = _mm256_setzero_ps();
        }
    }

    void store(float * out, int64_t stride) const {
        for (size_t i = 0; i < N; ++i) _mm256_storeu_ps(out + static_cast<int64_t>(i) * stride, sums[i]);
    }
};

void unpack(const uint8_t (&q)[STEPS / 2][GROUP][STEP], __m256i (&weights)[STEPS]) {
    for (int t = 0; t < STEPS / 2; ++t) {
        const __m256i bytes = load(q[t]);
        weights[t] = low_nibbles(bytes);
        weights[t + STEPS / 2] = high_nibbles(bytes);
    }
}

/// Bits shifted left by SHIFT, or right where it is negative, and masked.
template <int SHIFT>
__m256i shifted(__m256i bytes, char mask) {
    const __m256i moved = SHIFT < 0 ? _mm256_srli_epi16(bytes, -SHIFT) : _mm256_slli_epi16(bytes, SHIFT);
    return _mm256_and_si256(moved, _mm256_set1_epi8(mask));
}

/// The fifth bit of each step.
void add_high_bit(const uint8_t (&high)[GROUP][STEP], __m256i (&weights)[STEPS]) {
    const __m256i bits = load(high);
    weights[0] = _mm256_or_si256(weights[0], shifted<4>(bits, 16));
    weights[1] = _mm256_or_si256(weights[1], shifted<3>(bits, 16));
    weights[2] = _mm256_or_si256(weights[2], shifted<2>(bits, 16));
    weights[3] = _mm256_or_si256(weights[3], shifted<1>(bits, 16));
    weights[4] = _mm256_or_si256(weights[4], shifted<0>(bits, 16));
    weights[5] = _mm256_or_si256(weights[5], shifted<-1>(bits, 16));
    weights[6] = _mm256_or_si256(weights[6], shifted<-2>(bits, 16));
    weights[7] = _mm256_or_si256(weights[7], shifted<-3>(bits, 16));
}

/// The fifth to eighth bits of each step.
void add_high_nibbles(const uint8_t (&high)[STEPS / 2][GROUP][STEP], __m256i (&weights)[STEPS]) {
    for (int t = 0; t < STEPS / 2; ++t) {
        const __m256i bytes = load(high[t]);
        weights[t] = _mm256_or_si256(weights[t], shifted<4>(bytes, -16));
        weights[t + STEPS / 2] = _mm256_or_si256(weights[t + STEPS / 2], shifted<0>(bytes, -16));
    }
}

/// Adds d * (product - constant * sum of the activations) to token n's sums: weights from which a constant is taken.
template <size_t N>
void add_shifted(__m256i product, __m256 d, size_t n, int64_t i, Tokens<N> & tokens) {
    const Activations & a = tokens.activations[n];
    const __m256i constant = _mm256_set1_epi32(static_cast<const int32_t *>(a.sums)[i]);
    const __m256 sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(product, constant));
    tokens.sums[n] = _mm256_fmadd_ps(sum, _mm256_mul_ps(d, _mm256_set1_ps(a.d[i])), tokens.sums[n]);
}

/// Adds d * product + m * sum of the activations: weights with a least value.
template <size_t N>
void add_with_min(__m256i product, __m256 d, __m256 m, size_t n, int64_t i, Tokens<N> & tokens) {
    const Activations & a = tokens.activations[n];
    const __m256 sum = _mm256_set1_ps(static_cast<const float *>(a.sums)[i]);
    const __m256 with_min = _mm256_fmadd_ps(m, sum, tokens.sums[n]);
    tokens.sums[n] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), _mm256_mul_ps(d, _mm256_set1_ps(a.d[i])), with_min);
}

template <class Arithmetic, size_t N>
void add_block(const PackedQ4_0 & block, int64_t i, Tokens<N> & tokens) {
    prefetch(block);
    __m256i weights[STEPS];
    unpack(block.q, weights);
    const __m256 d = load_halves(block.d);
    for (size_t n = 0; n < N; ++n) {
        add_shifted(Arithmetic::template dot<4>(weights, tokens.activations[n].q + i * BLOCK), d, n, i, tokens);
    }
}

template <class Arithmetic, size_t N>
void add_block(const PackedQ5_0 & block, int64_t i, Tokens<N> & tokens) {
    prefetch(block);
    __m256i weights[STEPS];
    unpack(block.low.q, weights);
    add_high_bit(block.high, weights);
    const __m256 d = load_halves(block.low.d);
    for (size_t n = 0; n < N; ++n) {
        add_shifted(Arithmetic::template dot<5>(weights, tokens.activations[n].q + i * BLOCK), d, n, i, tokens);
    }
}

template <class Arithmetic, size_t N>
void add_block(const PackedQ8_0 & block, int64_t i, Tokens<N> & tokens) {
    prefetch(block);
    __m256i weights[STEPS];
    const __m256 d = load_halves(block.low.d);
    if constexpr (Arithmetic::MOST_BITS >= 8) {
        unpack(block.low.q, weights);
        add_high_nibbles(block.high, weights);
        for (size_t n = 0; n < N; ++n) {
            add_shifted(Arithmetic::template dot<8>(weights, tokens.activations[n].q + i * BLOCK), d, n, i, tokens);
        }
    } else {
        __m256i of_high[N];
        unpack(block.high, weights);
        for (size_t n = 0; n < N; ++n) {
            of_high[n] = Arithmetic::template dot<4>(weights, tokens.activations[n].q + i * BLOCK);
        }
        unpack(block.low.q, weights);
        for (size_t n = 0; n < N; ++n) {
            const __m256i of_low = Arithmetic::template dot<4>(weights, tokens.activations[n].q + i * BLOCK);
            add_shifted(_mm256_add_epi32(of_low, _mm256_slli_epi32(of_high[n], 4)), d, n, i, tokens);
        }
    }
}

template <class Arithmetic, size_t N>
void add_block(const PackedQ4_1 & block, int64_t i, Tokens<N> & tokens) {
    prefetch(block);
    __m256i weights[STEPS];
    unpack(block.q, weights);
    const __m256 d = load_halves(block.d), m = load_halves(block.m);
    for (size_t n = 0; n < N; ++n) {
        add_with_min(Arithmetic::template dot<4>(weights, tokens.activations[n].q + i * BLOCK), d, m, n, i, tokens);
    }
}

template <class Arithmetic, size_t N>
void add_block(const PackedQ5_1 & block, int64_t i, Tokens<N> & tokens) {
    prefetch(block);
    __m256i weights[STEPS];
    unpack(block.low.q, weights);
    add_high_bit(block.high, weights);
    const __m256 d = load_halves(block.low.d), m = load_halves(block.low.m);
    for (size_t n = 0; n < N; ++n) {
        add_with_min(Arithmetic::template dot<5>(weights, tokens.activations[n].q + i * BLOCK), d, m, n, i, tokens);
    }
}

/// Pairs of bytes as int16, the first and the second of a pair in each of a lane's halves.
template <class Byte>
__m256i load_pairs(const Byte (&pairs)[GROUP][2]) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(pairs));
    return static_cast<Byte>(-1) < 0 ? _mm256_cvtepi8_epi16(bytes) : _mm256_cvtepu8_epi16(bytes);
}

/// Low or high nibbles, the first or second block of a pair.
template <int WHICH>
void unpack(const uint8_t (&q)[STEPS][GROUP][STEP], __m256i (&weights)[STEPS]) {
    for (int t = 0; t < STEPS; ++t) weights[t] = WHICH == 0 ? low_nibbles(load(q[t])) : high_nibbles(load(q[t]));
}

/// The fifth and sixth bit of each step.
void add_high_bits(const uint8_t (&high)[2][GROUP][STEP], __m256i (&weights)[STEPS]) {
    for (int u = 0; u < 2; ++u) {
        const __m256i bits = load(high[u]);
        __m256i * four = weights + 4 * u;
        four[0] = _mm256_or_si256(four[0], shifted<4>(bits, 48));
        four[1] = _mm256_or_si256(four[1], shifted<2>(bits, 48));
        four[2] = _mm256_or_si256(four[2], shifted<0>(bits, 48));
        four[3] = _mm256_or_si256(four[3], shifted<-2>(bits, 48));
    }
}

/// Sums of a super-block in int32: of quantised weights with their scales, and what the weights' constant part takes off.
template <size_t N>
struct IntegerSums {
    __m256i products[N];
    __m256i constants[N];

    IntegerSums() {
        for (size_t n = 0; n < N; ++n) products[n] = constants[n] = _mm256_setzero_si256();
    }

    void add_product(size_t n, __m256i product) { products[n] = _mm256_add_epi32(products[n], product); }

    /// `pairs` [8][2] with two int16 sums of activations
    void add_constant(size_t n, __m256i pairs, const int16_t * sums) {
        constants[n] = _mm256_add_epi32(constants[n], _mm256_madd_epi16(pairs, broadcast(sums)));
    }
};

/// Block WHICH of a pair of Q4_K, or, with a plane of high bits, of Q5_K.
template <class Arithmetic, int WHICH, size_t N>
void add_k_block(const uint8_t (&q)[STEPS][GROUP][STEP], const uint8_t (*high)[STEP], __m256i scales, int64_t first,
                 const Tokens<N> & tokens, IntegerSums<N> & sums) {
    __m256i weights[STEPS];
    unpack<WHICH>(q, weights);
    if (high != nullptr) add_high_bit(*reinterpret_cast<const uint8_t(*)[GROUP][STEP]>(high), weights);
    const __m256i scale = Arithmetic::template scale<WHICH>(scales);
    for (size_t n = 0; n < N; ++n) {
        const int8_t * activations = tokens.activations[n].q + first;
        sums.add_product(n, high == nullptr
                                ? Arithmetic::template scaled_dot<4, 0, STEPS>(weights, activations, scale)
                                : Arithmetic::template scaled_dot<5, 0, STEPS>(weights, activations, scale));
    }
}

/// @param whole what is prefetched: the block with its high bits, if it has any
template <class Arithmetic, class Packed, size_t N>
void add_super_block(const Packed & whole, const PackedQ4_K & block, const uint8_t (*high)[GROUP][STEP], int64_t i,
                     Tokens<N> & tokens) {
    IntegerSums<N> sums;
    for (int pair = 0; pair < PAIRS; ++pair) {
        prefetch(whole, pair, PAIRS);
        const int64_t first = i * SUPER_BLOCK + pair * 2 * BLOCK;
        const __m256i scales = load_pairs(block.scales[pair]), mins = load_pairs(block.mins[pair]);
        add_k_block<Arithmetic, 0>(block.q[pair], high ? high[2 * pair] : nullptr, scales, first, tokens, sums);
        add_k_block<Arithmetic, 1>(block.q[pair], high ? high[2 * pair + 1] : nullptr, scales, first + BLOCK, tokens,
                                   sums);
        for (size_t n = 0; n < N; ++n) {
            sums.add_constant(n, mins, static_cast<const int16_t *>(tokens.activations[n].sums) + first / BLOCK);
        }
    }
    const __m256 d = load_halves(block.d), dmin = load_halves(block.dmin);
    for (size_t n = 0; n < N; ++n) {
        const __m256 scale = _mm256_set1_ps(tokens.activations[n].d[i]);
        const __m256 product = _mm256_cvtepi32_ps(sums.products[n]), constant = _mm256_cvtepi32_ps(sums.constants[n]);
        tokens.sums[n] = _mm256_fmadd_ps(product, _mm256_mul_ps(d, scale), tokens.sums[n]);
        tokens.sums[n] = _mm256_fnmadd_ps(constant, _mm256_mul_ps(dmin, scale), tokens.sums[n]);
    }
}

template <class Arithmetic, size_t N>
void add_block(const PackedQ4_K & block, int64_t i, Tokens<N> & tokens) {
    add_super_block<Arithmetic>(block, block, nullptr, i, tokens);
}

template <class Arithmetic, size_t N>
void add_block(const PackedQ5_K & block, int64_t i, Tokens<N> & tokens) {
    add_super_block<Arithmetic>(block, block.low, block.high, i, tokens);
}

/// Block WHICH of pair `pair` of Q6_K.
template <class Arithmetic, int WHICH, size_t N>
void add_q6_block(const PackedQ6_K & block, int pair, int64_t i, const Tokens<N> & tokens, IntegerSums<N> & sums) {
    const int j = 2 * pair + WHICH;
    const int64_t first = i * SUPER_BLOCK + j * BLOCK;
    __m256i weights[STEPS];
    unpack<WHICH>(block.q[pair], weights);
    add_high_bits(block.high[j], weights);
    const __m256i scales = load_pairs(block.scales[j]);
    const __m256i scale_0 = Arithmetic::template scale<0>(scales), scale_1 = Arithmetic::template scale<1>(scales);
    for (size_t n = 0; n < N; ++n) {
        const Activations & a = tokens.activations[n];
        sums.add_product(n, Arithmetic::template scaled_dot<6, 0, STEPS / 2>(weights, a.q + first, scale_0));
        sums.add_product(n, Arithmetic::template scaled_dot<6, STEPS / 2, STEPS>(weights, a.q + first, scale_1));
        sums.add_constant(n, scales, static_cast<const int16_t *>(a.sums) + first / 16);
    }
}

template <class Arithmetic, size_t N>
void add_block(const PackedQ6_K & block, int64_t i, Tokens<N> & tokens) {
    IntegerSums<N> sums;
    for (int pair = 0; pair < PAIRS; ++pair) {
        prefetch(block, pair, PAIRS);
        add_q6_block<Arithmetic, 0>(block, pair, i, tokens, sums);
        add_q6_block<Arithmetic, 1>(block, pair, i, tokens, sums);
    }
    const __m256 d = load_halves(block.d);
    for (size_t n = 0; n < N; ++n) {
        // 32 of each weight were too much
        const __m256i sum = _mm256_sub_epi32(sums.products[n], _mm256_slli_epi32(sums.constants[n], 5));
        const __m256 scale = _mm256_mul_ps(d, _mm256_set1_ps(tokens.activations[n].d[i]));
        tokens.sums[n] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, tokens.sums[n]);
    }
}

template <class Arithmetic, class Packed, size_t N>
void multiply_tokens(const Packed * blocks, int64_t n_inputs, const void * first, float * out, int64_t out_stride) {
    Tokens<N> tokens(Packed::TYPE, n_inputs, first);
    for (int64_t i = 0; i < n_inputs / Packed::INPUTS; ++i) add_block<Arithmetic>(blocks[i], i, tokens);
    tokens.store(out, out_stride);
}

template <class Arithmetic, class Packed>
void multiply(const void * group, int64_t n_inputs, const void * tokens, int n_tokens, float * out,
              int64_t out_stride) noexcept {
    const auto * blocks = static_cast<const Packed *>(group);
    switch (n_tokens) {
        case 1: return multiply_tokens<Arithmetic, Packed, 1>(blocks, n_inputs, tokens, out, out_stride);
        case 2: return multiply_tokens<Arithmetic, Packed, 2>(blocks, n_inputs, tokens, out, out_stride);
        case 3: return multiply_tokens<Arithmetic, Packed, 3>(blocks, n_inputs, tokens, out, out_stride);
        case 4: return multiply_tokens<Arithmetic, Packed, 4>(blocks, n_inputs, tokens, out, out_stride);
        case 5: return multiply_tokens<Arithmetic, Packed, 5>(blocks, n_inputs, tokens, out, out_stride);
        case 6: return multiply_tokens<Arithmetic, Packed, 6>(blocks, n_inputs, tokens, out, out_stride);
        case 7: return multiply_tokens<Arithmetic, Packed, 7>(blocks, n_inputs, tokens, out, out_stride);
        default: return multiply_tokens<Arithmetic, Packed, 8>(blocks, n_inputs, tokens, out, out_stride);
    }
}

template <class Arithmetic>
MultiplyGroup multiply_with(ggml_type weights) {
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

}  // namespace
// NOLINTEND(misc-definitions-in-headers)

}  // namespace harp::kernels
