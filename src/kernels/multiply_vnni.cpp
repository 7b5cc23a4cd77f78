// The kernels for AVX-512 VNNI, in registers of 256 bits: one instruction multiplies a step and adds it, and every
// processor that has it can do two at a time. Compiled with -mavx512vl -mavx512vnni and those of AVX2: nothing here may
// be called without them.
//
// HARP_EMULATE_VNNI: with the one instruction in AVX2's, exactly; for tests on processors that lack it.
#include "kernels/multiply.h"

#if defined(__x86_64__)

#include "kernels/multiply_256.h"

namespace harp::kernels {

namespace {

struct Vnni {
    static constexpr int MOST_BITS = 8;
    static constexpr int MOST_SUMS = 16;  // of 32 registers

    static constexpr size_t steps_together(int /*bits*/) { return STEPS; }

    /// sum + w0 a0 + w1 a1 + w2 a2 + w3 a3 in each lane, int32
    static __m256i add_step(__m256i sum, __m256i weights, __m256i activations) {
#if defined(HARP_EMULATE_VNNI)
        const __m256i even = _mm256_madd_epi16(_mm256_and_si256(weights, _mm256_set1_epi16(255)),
                                               _mm256_srai_epi16(_mm256_slli_epi16(activations, 8), 8));
        const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(weights, 8), _mm256_srai_epi16(activations, 8));
        return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
#else
        return _mm256_dpbusd_epi32(sum, weights, activations);
#endif
    }

    static __m256i scaled(__m256i sum, __m256i scale) {
        return _mm256_mullo_epi32(sum, scale);
    }

    static __m256i one() {
        return _mm256_set1_epi32(1);
    }

    /// The first or second int16 of each pair as the lane's int32.
    template <bool SECOND>
    static __m256i scale(__m256i pairs) {
        return _mm256_srai_epi32(SECOND ? pairs : _mm256_slli_epi32(pairs, 16), 16);
    }
};

}  // namespace

#if defined(HARP_EMULATE_VNNI)
Kernel emulated_vnni_kernel(ggml_type weights) noexcept {
    return kernel_with<Vnni>(weights);
}
#else
Kernel vnni_kernel(ggml_type weights) noexcept {
    return kernel_with<Vnni>(weights);
}
#endif

}  // namespace harp::kernels

#else

namespace harp::kernels {

Kernel vnni_kernel(ggml_type) noexcept {
    return {};
}

}  // namespace harp::kernels

#endif
