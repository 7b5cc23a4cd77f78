// Activations of one token, quantised as ggml does for the weights' type, in the order in which the kernels read them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ggml.h"

namespace harp::kernels {

/// A token's activations. Sums of quantised values go with the constant part of a weight:
///
/// | weights | scale of | sums |
/// |---|---|---|
/// | Q4_0, Q5_0, Q8_0 | 32 | int32 [n / 32], times 8, 16, 128 |
/// | Q4_1, Q5_1 | 32 | float [n / 32], times the scale |
/// | Q4_K, Q5_K | 256 | int16 [n / 32] |
/// | Q6_K | 256 | int16 [n / 16], times 32 in the dot product |
struct Activations {
    const int8_t * q;  // [n_inputs]
    const float * d;   // scales
    const void * sums;
};

/// Where the parts of a quantised token are, in bytes from its first value.
struct TokenLayout {
    size_t scales, sums;
    size_t bytes;  // of all, a multiple of 64
};

[[nodiscard]] TokenLayout token_layout(ggml_type weights, int64_t n_inputs) noexcept;

/// Quantises `row` [n_inputs] into `token`, by ggml's own function: the values are those that its kernels use.
void quantize(ggml_type weights, const float * row, int64_t n_inputs, void * token) noexcept;

/// Bytes of a batch's tokens, one behind the other.
[[nodiscard]] size_t tokens_bytes(ggml_type weights, int64_t n_inputs, int64_t n_tokens) noexcept;

/// quantize() to the place of number `token` in a batch.
void quantize_token(ggml_type weights, const float * row, int64_t n_inputs, int64_t token, char * tokens) noexcept;

/// @param token a quantised token
[[nodiscard]] inline Activations view(const TokenLayout & layout, const char * token) noexcept {
    return {reinterpret_cast<const int8_t *>(token), reinterpret_cast<const float *>(token + layout.scales),
            token + layout.sums};
}

}  // namespace harp::kernels
