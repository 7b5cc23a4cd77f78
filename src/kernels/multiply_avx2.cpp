// The kernels for AVX2. Compiled with -mavx2 -mfma -mf16c: nothing here may be called without them.
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
    static constexpr int MOST_SUMS = 12;  // of 16 registers, beside weights and activations

    static constexpr size_t steps_together(int bits) { return bits == 4 ? 8 : bits == 5 ? 4 : 2; }

    /// sum + w0 a0 + w1 a1 and sum + w2 a2 + w3 a3 in each lane's halves, int16
    static __m256i add_step(__m256i sum, __m256i weights, __m256i activations) {
        return _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, activations));
    }

    /// What stands in a lane's halves, times a scale in each of them, added: int32.
    static __m256i scaled(__m256i sum, __m256i scale) { return _mm256_madd_epi16(sum, scale); }

    static __m256i one() { return _mm256_set1_epi16(1); }

    /// The first or second int16 of each pair in both of the lane's halves.
    template <bool SECOND>
    static __m256i scale(__m256i pairs) {
        constexpr char b = SECOND ? 2 : 0;
        return _mm256_shuffle_epi8(
            pairs, _mm256_setr_epi8(b, b + 1, b, b + 1, b + 4, b + 5, b + 4, b + 5, b + 8, b + 9, b + 8, b + 9, b + 12,
                                    b + 13, b + 12, b + 13, b, b + 1, b, b + 1, b + 4, b + 5, b + 4, b + 5, b + 8,
                                    b + 9, b + 8, b + 9, b + 12, b + 13, b + 12, b + 13));
    }
};

}  // namespace

Kernel avx2_kernel(ggml_type weights) noexcept {
    return kernel_with<Avx2>(weights);
}

}  // namespace harp::kernels

#else

namespace harp::kernels {

Kernel avx2_kernel(ggml_type) noexcept {
    return {};
}

}  // namespace harp::kernels

#endif
