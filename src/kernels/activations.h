// One token's activations, quantised as ggml does it for the weights' type, in the order in which the kernels read
// them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ggml.h"

namespace harp::kernels {

/// A token's activations, d * q. Their sums are multiplied with the offsets of the weights. A sum covers the inputs that
/// share a scale of the weights: 16 for Q6_K, else 32. A scale d of the activations covers 32 inputs, or 256 for K
/// formats. Where weights are d * (q - c), the sums are multiplied with -c already.
struct Activations {
    const int8_t * q;            // [n_inputs]
    const float * d;             // [n_inputs / 32 or 256]
    const float * sums;          // sums of q, [n_inputs / 32 or 16]
    const int32_t * centres;     // where weights are d * (q - c): -c times the sums, instead of them
    const int16_t * short_sums;  // the same for K formats
};

/// Where the parts of a quantised token are, in bytes from its beginning.
struct TokenLayout {
    size_t scales, sums, short_sums;
    size_t bytes;  // of the whole token, a multiple of 64
};

[[nodiscard]] TokenLayout token_layout(ggml_type weights, int64_t n_inputs) noexcept;

/// Quantises `row` [n_inputs] into `token` with ggml's own function, so that the values are those that its kernels use.
void quantize(ggml_type weights, const float * row, int64_t n_inputs, void * token) noexcept;

/// Bytes of a batch's tokens, one after the other.
[[nodiscard]] size_t tokens_bytes(ggml_type weights, int64_t n_inputs, int64_t n_tokens) noexcept;

/// quantize() into the place of token number `token` in a batch.
void quantize_token(ggml_type weights, const float * row, int64_t n_inputs, int64_t token, char * tokens) noexcept;

/// @param token a quantised token
[[nodiscard]] inline Activations view(const TokenLayout & layout, const char * token) noexcept {
    return {reinterpret_cast<const int8_t *>(token), reinterpret_cast<const float *>(token + layout.scales),
            reinterpret_cast<const float *>(token + layout.sums),
            reinterpret_cast<const int32_t *>(token + layout.sums),
            reinterpret_cast<const int16_t *>(token + layout.short_sums)};
}

}  // namespace harp::kernels
