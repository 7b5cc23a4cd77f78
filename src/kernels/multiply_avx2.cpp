// Products for AVX2. Compiled with -mavx2 -mfma -mf16c: nothing here may be called without them.
//
// Two multiplied pairs of bytes are added up in int16 (maddubs), as many steps as cannot overflow; then madd gives int32:
//
//     bits of a weight | steps in int16 | largest sum
//     4                | 8              | 8 * 2 * 15 * 127 = 30480
//     5                | 4              | 4 * 2 * 31 * 127 = 31496
//     6                | 2              | 2 * 2 * 63 * 127 = 32004
#include "kernels/multiply.h"

#if defined(__x86_64__)

#include "kernels/multiply_256.h"

namespace harp::kernels {

namespace {

struct Avx2 {
    static constexpr int MOST_BITS = 6;

    /// Products with all steps of a block, int32 [8].
    template <int BITS>
    static __m256i dot(const __m256i (&weights)[STEPS], const int8_t * q) {
        return scaled_dot<BITS, 0, STEPS>(weights, q, _mm256_set1_epi16(1));
    }

    /// Products with steps FIRST..LAST-1, times `scale`.
    template <int BITS, int FIRST, int LAST>
    static __m256i scaled_dot(const __m256i (&weights)[STEPS], const int8_t * q, __m256i scale) {
        constexpr int TOGETHER = BITS == 4 ? 8 : BITS == 5 ? 4 : 2;
        constexpr int END = FIRST + TOGETHER < LAST ? FIRST + TOGETHER : LAST;
        __m256i sum = _mm256_maddubs_epi16(weights[FIRST], broadcast(q + FIRST * STEP));
        for (int t = FIRST + 1; t < END; ++t) {
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights[t], broadcast(q + t * STEP)));
        }
        const __m256i product = _mm256_madd_epi16(sum, scale);
        if constexpr (END == LAST) {
            return product;
        } else {
            return _mm256_add_epi32(product, scaled_dot<BITS, END, LAST>(weights, q, scale));
        }
    }

    /// The first or second int16 of each pair in both of the lane's halves.
    template <int WHICH>
    static __m256i scale(__m256i pairs) {
        constexpr char b = 2 * WHICH;
        return _mm256_shuffle_epi8(
            pairs, _mm256_setr_epi8(b, b + 1, b, b + 1, b + 4, b + 5, b + 4, b + 5, b + 8, b + 9, b + 8, b + 9, b + 12,
                                    b + 13, b + 12, b + 13, b, b + 1, b, b + 1, b + 4, b + 5, b + 4, b + 5, b + 8,
                                    b + 9, b + 8, b + 9, b + 12, b + 13, b + 12, b + 13));
    }
};

}  // namespace

MultiplyGroup multiply_avx2(ggml_type weights) noexcept {
    return multiply_with<Avx2>(weights);
}

}  // namespace harp::kernels

#else

namespace harp::kernels {

MultiplyGroup multiply_avx2(ggml_type) noexcept {
    return nullptr;
}

}  // namespace harp::kernels

#endif
