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
    static constexpr size_t WIDTH = 16;
    static constexpr int MOST_BITS = 8;
    template <class Packed>
    static constexpr size_t REGISTERS = 2;
    /// K formats need twice as many sums per token.
    template <class Packed, size_t N_REGISTERS>
    static constexpr size_t TOKENS = N_REGISTERS == 1                ? 14
                                     : Packed::INPUTS == SUPER_BLOCK ? 4
                                                                     : 8;
    static constexpr bool ALWAYS_WIDE = false;

    static constexpr size_t steps_together(int /*bits*/) { return STEPS; }

    /// sum + w0 a0 + w1 a1 + w2 a2 + w3 a3 in each lane, int32
    static Words<WIDTH> add_step(Words<WIDTH> sum, Words<WIDTH> weights, Words<WIDTH> activations) {
#if defined(HARP_EMULATE_VNNI)
        using Signed = Integers<WIDTH>;
        for (int i = 0; i < STEP; ++i) {
            const auto activation = reinterpret_cast<Signed>(activations << (24 - 8 * i)) >> 24;
            sum += (weights >> (8 * i) & 255) * reinterpret_cast<Words<WIDTH>>(activation);
        }
        return sum;
#else
        return reinterpret_cast<Words<WIDTH>>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum),
                                                                  reinterpret_cast<__m512i>(weights),
                                                                  reinterpret_cast<__m512i>(activations)));
#endif
    }

#if defined(HARP_EMULATE_VNNI)
    static constexpr bool LOADS = false;
#else
    /// In assembly because GCC loads with an instruction of its own. The processor looks a certain number of
    /// instructions ahead, so with fewer of them it asks for more memory while it multiplies.
    static constexpr bool LOADS = true;
    static Words<WIDTH> load_and_add_step(Words<WIDTH> sum, Words<WIDTH> weights, const int8_t * activations) {
        asm volatile("vpdpbusd %2%{1to16%}, %1, %0"
                     : "+v"(sum)
                     : "v"(weights), "m"(*reinterpret_cast<const int8_t(*)[STEP]>(activations)));
        return sum;
    }
#endif

    /// sum + p0 t0 + p1 t1 in each lane, of int16
    static Integers<WIDTH> add_pairs(Integers<WIDTH> sum, Words<WIDTH> pairs, Words<WIDTH> two) {
#if defined(HARP_EMULATE_VNNI)
        using Signed = Integers<WIDTH>;
        const auto low = [](Words<WIDTH> words) { return reinterpret_cast<Signed>(words << 16) >> 16; };
        const auto high = [](Words<WIDTH> words) { return reinterpret_cast<Signed>(words) >> 16; };
        return sum + low(pairs) * low(two) + high(pairs) * high(two);
#else
        return reinterpret_cast<Integers<WIDTH>>(_mm512_dpwssd_epi32(
            reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(pairs), reinterpret_cast<__m512i>(two)));
#endif
    }

    static constexpr bool HAS_SCALES = false;
    struct One {};
    static One one() {
        return {};
    }

    static Words<WIDTH> start(Integers<WIDTH> so_far) {
        return reinterpret_cast<Words<WIDTH>>(so_far);
    }

    static Integers<WIDTH> total(Words<WIDTH> sum, One /*scale*/, Integers<WIDTH> /*so_far*/) {
        return reinterpret_cast<Integers<WIDTH>>(sum);
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
