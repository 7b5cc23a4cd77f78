// Products for AVX-512 VNNI, in registers of 256 bits: one instruction multiplies a step and adds it, and every processor that has it
// can do two at a time. Compiled with -mavx512vl -mavx512vnni and those of AVX2: nothing here may be called without them.
//
// HARP_EMULATE_VNNI: with the one instruction in AVX2's, exactly; for tests on processors that lack it.
#include "kernels/multiply.h"

#if defined(__x86_64__)

#include "kernels/multiply_256.h"

namespace harp::kernels {

namespace {

/// sum + w0 a0 + w1 a1 + w2 a2 + w3 a3 in each lane, weights uint8, activations int8
__m256i add_products(__m256i sum, __m256i weights, __m256i activations) {
#if defined(HARP_EMULATE_VNNI)
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(weights, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(activations, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(weights, 8), _mm256_srai_epi16(activations, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
#else
    return _mm256_dpbusd_epi32(sum, weights, activations);
#endif
}

struct Vnni {
    static constexpr int MOST_BITS = 8;

    /// Products with all steps of a block, int32 [8].
    template <int BITS>
    static __m256i dot(const __m256i (&weights)[STEPS], const int8_t * q) {
        return sum<0, STEPS>(weights, q);
    }

    /// Products with steps FIRST..LAST-1, times `scale`.
    template <int BITS, int FIRST, int LAST>
    static __m256i scaled_dot(const __m256i (&weights)[STEPS], const int8_t * q, __m256i scale) {
        return _mm256_mullo_epi32(sum<FIRST, LAST>(weights, q), scale);
    }

    /// The first or second int16 of each pair as the lane's int32.
    template <int WHICH>
    static __m256i scale(__m256i pairs) {
        return _mm256_srai_epi32(WHICH == 0 ? _mm256_slli_epi32(pairs, 16) : pairs, 16);
    }

  private:
    template <int FIRST, int LAST>
    static __m256i sum(const __m256i (&weights)[STEPS], const int8_t * q) {
        __m256i total = _mm256_setzero_si256();
        for (int t = FIRST; t < LAST; ++t) total = add_products(total, weights[t], broadcast(q + t * STEP));
        return total;
    }
};

}  // namespace

#if defined(HARP_EMULATE_VNNI)
MultiplyGroup multiply_emulated_vnni(ggml_type weights) noexcept {
    return multiply_with<Vnni>(weights);
}
#else
MultiplyGroup multiply_vnni(ggml_type weights) noexcept {
    return multiply_with<Vnni>(weights);
}
#endif

}  // namespace harp::kernels

#else

namespace harp::kernels {

MultiplyGroup multiply_vnni(ggml_type) noexcept {
    return nullptr;
}

}  // namespace harp::kernels

#endif
