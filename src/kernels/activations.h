// Activations, quantised as ggml does it for the weights' type (quantize_avx2.cpp), in the order in which the kernels read them: a token is
// an array of blocks, each with all that is needed of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "ggml.h"
#include "kernels/packed_weights.h"

namespace harp::kernels {

/// An integer n of at most 22 bits added to BIAS_BITS gives the bits of the float BIAS + n. So a sum that begins with them
/// is a float without conversion, and the multiply-add with its scale takes BIAS away, exactly.
inline constexpr int32_t BIAS_BITS = 0x4B400000;
inline constexpr float BIAS = 12582912.0F;  // 1.5 * 2^23

/// Activations d * q of 32 inputs.
struct ActivationBlock {
    int8_t q[BLOCK];
    float d;
    float sum;  // of q, which is multiplied with the offset of the weights
    int32_t
        start;  // of a sum of products. Where weights are d * (q - c): BIAS_BITS - c times the sum of q, else BIAS_BITS
};

/// The same for a block of a K format, which is scaled last.
struct ActivationSuperBlock {
    int8_t q[SUPER_BLOCK];
    float d;
    int16_t sums[SUPER_BLOCK / 16];  // of the inputs that share a scale of the weights: 16 for Q6_K, else 32
};

template <class Packed>
using Activations = std::conditional_t<Packed::INPUTS == SUPER_BLOCK, ActivationSuperBlock, ActivationBlock>;

/// Quantises `row` [n_inputs] to the values that ggml's kernels use. For processors with AVX2.
/// @param token  ActivationBlock or ActivationSuperBlock, as the weights' type is
void quantize(ggml_type weights, const float * row, int64_t n_inputs, void * token) noexcept;

/// Bytes of a token, a multiple of a cache line.
[[nodiscard]] size_t token_bytes(ggml_type weights, int64_t n_inputs) noexcept;

/// Bytes of a batch's tokens, one after the other.
[[nodiscard]] size_t tokens_bytes(ggml_type weights, int64_t n_inputs, int64_t n_tokens) noexcept;

/// quantize() into the place of token number `token` in a batch.
void quantize_token(ggml_type weights, const float * row, int64_t n_inputs, int64_t token, char * tokens) noexcept;

}  // namespace harp::kernels
