// The kernels for AVX2. Compiled with -mavx2 -mfma -mf16c: call nothing here on a processor without them.
//
// maddubs multiplies pairs of bytes and adds two products in int16. As many steps are added in int16 as cannot
// overflow; then madd adds up to int32:
//
//     bits of a weight | steps in int16 | largest sum
//     4                | 8              | 8 * 2 * 15 * 127 = 30480
//     5                | 4              | 4 * 2 * 31 * 127 = 31496
//     6                | 2              | 2 * 2 * 63 * 127 = 32004
#include "kernels/multiply.h"

#if defined(__x86_64__)

#include <algorithm>
#include <type_traits>

#include "kernels/few_tokens.h"

namespace harp::kernels {

namespace {

constexpr size_t steps_in_int16(int bits) {
    return bits == 4 ? 8 : bits == 5 ? 4 : 2;
}

struct Avx2 {
    static constexpr size_t WIDTH = 8;
    static constexpr int MOST_BITS = 6;
    /// For weights that take long to unpack, the registers are best used for four steps of a single register of
    /// outputs.
    template <class Packed>
    static constexpr size_t REGISTERS =
        std::is_same_v<Packed, PackedQ5_K> || std::is_same_v<Packed, PackedQ6_K> ? 1 : 2;
    static constexpr bool ALWAYS_WIDE = true;
    /// As many tokens as have their sums in registers (12 of 16), if sums stay there. Fewer if a weight takes two
    /// multiplications.
    template <class Packed, size_t N_REGISTERS>
    static constexpr size_t TOKENS = Packed::BITS > MOST_BITS               ? 4
                                     : steps_in_int16(Packed::BITS) < STEPS ? 8
                                                                            : std::min<size_t>(8, 12 / N_REGISTERS);

    static constexpr size_t steps_together(int bits) { return steps_in_int16(bits); }

    /// In the two int16 halves of each lane: sum + w0 a0 + w1 a1, and sum + w2 a2 + w3 a3.
    static Words<WIDTH> add_step(Words<WIDTH> sum, Words<WIDTH> weights, Words<WIDTH> activations) {
        const __m256i product =
            _mm256_maddubs_epi16(reinterpret_cast<__m256i>(weights), reinterpret_cast<__m256i>(activations));
        return reinterpret_cast<Words<WIDTH>>(_mm256_add_epi16(reinterpret_cast<__m256i>(sum), product));
    }

    static constexpr bool LOADS = false;

    static Words<WIDTH> start(Integers<WIDTH> /*so_far*/) { return Words<WIDTH>{}; }

    /// Multiplies both halves of a lane with the scale and adds them.
    static Integers<WIDTH> total(Words<WIDTH> sum, __m256i scale, Integers<WIDTH> so_far) {
        return so_far + reinterpret_cast<Integers<WIDTH>>(_mm256_madd_epi16(reinterpret_cast<__m256i>(sum), scale));
    }

    static __m256i one() { return _mm256_set1_epi16(1); }

    static constexpr bool HAS_SCALES = true;

    /// The scale in both halves of the lane.
    static __m256i scale(Words<WIDTH> pairs, size_t which) {
        const __m256i first = _mm256_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13,  //
                                               0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13);
        return _mm256_shuffle_epi8(reinterpret_cast<__m256i>(pairs),
                                   which == 0 ? first : _mm256_add_epi8(first, _mm256_set1_epi8(2)));
    }

    static Integers<WIDTH> add_pairs(Integers<WIDTH> sum, Words<WIDTH> pairs, Words<WIDTH> two) {
        return sum + reinterpret_cast<Integers<WIDTH>>(
                         _mm256_madd_epi16(reinterpret_cast<__m256i>(pairs), reinterpret_cast<__m256i>(two)));
    }

    template <class Vector>
    static Vector in_register(Vector value) {
        asm volatile("" : "+x"(value));
        return value;
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
