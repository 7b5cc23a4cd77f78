// Products of packed weights with the quantised activations of a few tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "ggml.h"

namespace harp::kernels {

inline constexpr int MAX_TOKENS = 8;  // of one call: their sums and a block's weights fit the registers, more or less

/// Multiplies one group of 8 outputs with `n_tokens` (1..MAX_TOKENS) tokens.
///
/// @param group     packed weights, packed_weights.h
/// @param n_inputs  length of a row
/// @param tokens    the first quantised token, activations.h; the others follow at distances of token_bytes()
/// @param out       of the first token, [8]; those of the others follow at distances of `out_stride` floats
/// The sums are those of ggml's own products of quantised rows, added in another order.
using MultiplyGroup = void (*)(const void * group, int64_t n_inputs, const void * tokens, int n_tokens, float * out,
                               int64_t out_stride) noexcept;

/// The product for weights of a type on this processor; nullptr if there is none.
[[nodiscard]] MultiplyGroup multiply_for(ggml_type weights) noexcept;

/// Instructions that multiply_for() uses here: "AVX-512 VNNI", "AVX2", or "none".
[[nodiscard]] std::string_view instructions() noexcept;

// Each for its own instructions; only where the processor has them.
[[nodiscard]] MultiplyGroup multiply_avx2(ggml_type weights) noexcept;
[[nodiscard]] MultiplyGroup multiply_vnni(ggml_type weights) noexcept;

}  // namespace harp::kernels
