// Quantisation of activations, with ggml's results. ggml's own function for K formats takes one value at a time, and took
// 5 to 10 % of the time of a prompt. Compiled with -mavx2 -mfma -mf16c.
#include "kernels/activations.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "kernels/packed_weights.h"
#include "kernels/unrolled.h"

namespace harp::kernels {

namespace {

constexpr size_t FLOATS = 8;  // in a register
constexpr size_t REGISTERS = BLOCK / FLOATS;

__m256 absolute(__m256 values) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), values);
}

float greatest(__m256 values) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

/// The greatest absolute value; NaN counts as nothing.
template <size_t N>
float greatest_absolute(const float * row) {
    __m256 so_far = _mm256_setzero_ps();
    for (size_t i = 0; i < N; i += FLOATS) so_far = _mm256_max_ps(absolute(_mm256_loadu_ps(row + i)), so_far);
    return greatest(so_far);
}

/// The first of a super-block's values whose absolute value is `greatest`.
float first_of(const float * row, float greatest) {
    for (size_t i = 0; i < SUPER_BLOCK; i += FLOATS) {
        const __m256 equal = _mm256_cmp_ps(absolute(_mm256_loadu_ps(row + i)), _mm256_set1_ps(greatest), _CMP_EQ_OQ);
        const int which = _mm256_movemask_ps(equal);
        if (which != 0) return row[i + static_cast<size_t>(__builtin_ctz(static_cast<unsigned>(which)))];
    }
    return greatest;
}

/// 32 values times `factor`, rounded to nearest, as bytes.
__m256i rounded(const float * row, float factor) {
    __m256i integers[REGISTERS];
    HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
        const __m256 values = _mm256_loadu_ps(row + r * FLOATS);
        integers[r] = _mm256_cvtps_epi32(_mm256_mul_ps(values, _mm256_set1_ps(factor)));
    }
    const __m256i first = _mm256_packs_epi32(integers[0], integers[1]);
    const __m256i second = _mm256_packs_epi32(integers[2], integers[3]);
    // packing takes four values at a time from each half of the registers
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, second), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

struct Sums {
    int first, second;  // of 16 bytes each
};

Sums sums_of(__m256i bytes) {
    const __m256i twos = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
    const __m256i fours = _mm256_madd_epi16(twos, _mm256_set1_epi16(1));
    const __m256i eights = _mm256_hadd_epi32(fours, fours);
    const __m256i sums = _mm256_hadd_epi32(eights, eights);
    return {_mm256_extract_epi32(sums, 0), _mm256_extract_epi32(sums, 4)};
}

float through_half(float value) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtps_ph(_mm_set_ss(value), _MM_FROUND_TO_NEAREST_INT)));
}

/// As quantize_row_q8_0() and quantize_row_q8_1() do it.
/// @param constant  the weights are d * (q - constant)
void quantize_block(const float * row, int constant, ActivationBlock & to) {
    const float most = greatest_absolute<BLOCK>(row);
    const float d = most / 127;
    const __m256i q = rounded(row, most == 0 ? 0 : 127 / most);
    const auto [first, second] = sums_of(q);
    const int sum = first + second;
    std::memcpy(to.q, &q, sizeof(q));
    to.d = through_half(d);
    // ggml multiplies with d * sum rounded to float16, so the sum is taken from that
    to.sum = to.d == 0 ? 0 : through_half(d * static_cast<float>(sum)) / to.d;
    to.start = BIAS_BITS - constant * sum;
}

/// As quantize_row_q8_K() does it.
/// @param n_scales  for 32 inputs of the weights
void quantize_super_block(const float * row, int n_scales, ActivationSuperBlock & to) {
    const float most = greatest_absolute<SUPER_BLOCK>(row);
    if (most == 0) {
        to = {};
        return;
    }
    const float factor = -127 / first_of(row, most);
    to.d = 1 / factor;
    int16_t * sums = to.sums;
    for (size_t i = 0; i < SUPER_BLOCK; i += BLOCK) {
        const __m256i q = rounded(row + i, factor);
        std::memcpy(to.q + i, &q, sizeof(q));
        const auto [first, second] = sums_of(q);
        if (n_scales == 2) {
            *sums++ = static_cast<int16_t>(first);
            *sums++ = static_cast<int16_t>(second);
        } else {
            *sums++ = static_cast<int16_t>(first + second);
        }
    }
}

template <class Packed>
void quantize_blocks(const float * row, int64_t n_inputs, void * token) {
    auto * to = static_cast<Activations<Packed> *>(token);
    for (int64_t i = 0; i < n_inputs; i += Packed::INPUTS, ++to) {
        if constexpr (Packed::INPUTS == SUPER_BLOCK) {
            quantize_super_block(row + i, Packed::SCALES, *to);
        } else {
            quantize_block(row + i, Packed::CONSTANT, *to);
        }
    }
}

}  // namespace

void quantize(ggml_type weights, const float * row, int64_t n_inputs, void * token) noexcept {
    const auto quantize_all = visit_packed(weights, []<class Packed>(Type<Packed>) { return quantize_blocks<Packed>; });
    quantize_all(row, n_inputs, token);
}

void quantize_token(ggml_type weights, const float * row, int64_t n_inputs, int64_t token, char * tokens) noexcept {
    quantize(weights, row, n_inputs, tokens + tokens_bytes(weights, n_inputs, token));
}

}  // namespace harp::kernels

#endif
