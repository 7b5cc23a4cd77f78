// Activations of one token, quantised as ggml does for the weights' type, in the order in which the products read them.
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
/// | Q6_K | 256 | int16 [n / 16], times 32 in the product |
struct Activations {
    const int8_t * q;  // [n_inputs]
    const float * d;   // scales
    const void * sums;
};

/// Bytes of a quantised token, a multiple of 64.
[[nodiscard]] size_t token_bytes(ggml_type weights, int64_t n_inputs) noexcept;

/// Quantises `row` [n_inputs] into `token` [token_bytes()], by ggml's own function: the values are those that its products use.
void quantize(ggml_type weights, const float * row, int64_t n_inputs, void * token) noexcept;

/// Where the parts of a quantised token are.
[[nodiscard]] Activations view(ggml_type weights, int64_t n_inputs, const void * token) noexcept;

}  // namespace harp::kernels
