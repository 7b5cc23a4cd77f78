// The kernels for AVX-512 VNNI, in registers of 512 bits: one instruction multiplies and adds a step of 16 outputs.
// Compiled with -mavx512vnni, its companions and the flags for AVX2: call nothing here on a processor without them.
//
// HARP_EMULATE_VNNI: with plain integers, for tests on other processors.
#include "kernels/multiply.h"

#if defined(__x86_64__)

#include "kernels/few_tokens.h"

namespace harp::kernels {

namespace {

struct Vnni {
    static constexpr size_t GROUPS = 2;
    static constexpr int MOST_BITS = 8;
    template <class Packed>
    static constexpr size_t REGISTERS = 2;
    /// K formats need twice as many sums per token: two registers of outputs for four tokens, or one for eight.
    template <class Packed, size_t REGISTERS>
    static constexpr size_t TOKENS = Packed::INPUTS == SUPER_BLOCK && REGISTERS == 2 ? 4 : 8;
    template <class Packed>
    static constexpr bool ALWAYS_WIDE = Packed::INPUTS == BLOCK;

    static constexpr size_t steps_together(int /*bits*/) { return STEPS; }

    /// sum + w0 a0 + w1 a1 + w2 a2 + w3 a3 in each lane, int32
    static Words<GROUPS> add_step(Words<GROUPS> sum, Words<GROUPS> weights, Words<GROUPS> activations) {
#if defined(HARP_EMULATE_VNNI)
        using Signed = Integers<GROUPS>;
        for (int i = 0; i < STEP; ++i) {
            const auto activation = reinterpret_cast<Signed>(activations << (24 - 8 * i)) >> 24;
            sum += (weights >> (8 * i) & 255) * reinterpret_cast<Words<GROUPS>>(activation);
        }
        return sum;
#else
        return reinterpret_cast<Words<GROUPS>>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum),
                                                                   reinterpret_cast<__m512i>(weights),
                                                                   reinterpret_cast<__m512i>(activations)));
#endif
    }

    /// sum + p0 t0 + p1 t1 in each lane, of int16
    static Integers<GROUPS> add_pairs(Integers<GROUPS> sum, Words<GROUPS> pairs, Words<GROUPS> two) {
#if defined(HARP_EMULATE_VNNI)
        using Signed = Integers<GROUPS>;
        const auto low = [](Words<GROUPS> words) { return reinterpret_cast<Signed>(words << 16) >> 16; };
        const auto high = [](Words<GROUPS> words) { return reinterpret_cast<Signed>(words) >> 16; };
        return sum + low(pairs) * low(two) + high(pairs) * high(two);
#else
        return reinterpret_cast<Integers<GROUPS>>(_mm512_dpwssd_epi32(reinterpret_cast<__m512i>(sum),
                                                                      reinterpret_cast<__m512i>(pairs),
                                                                      reinterpret_cast<__m512i>(two)));
#endif
    }

    static constexpr bool HAS_SCALES = false;
    struct One {};
    static One one() {
        return {};
    }

    static Words<GROUPS> start(Integers<GROUPS> so_far) {
        return reinterpret_cast<Words<GROUPS>>(so_far);
    }

    static Integers<GROUPS> total(Words<GROUPS> sum, One /*scale*/, Integers<GROUPS> /*so_far*/) {
        return reinterpret_cast<Integers<GROUPS>>(sum);
    }

    template <class Vector>
    static Vector in_register(Vector value) {
#if !defined(HARP_EMULATE_VNNI)
        asm volatile("" : "+v"(value));
#endif
        return value;
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
