// Products of packed weights with the quantised activations of a few tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "ggml.h"

namespace harp::kernels {

inline constexpr int MAX_GROUPS = 2;  // of one call: groups share the loads of the activations
inline constexpr int MAX_TOKENS = 8;  // and tokens the unpacked weights

/// What one call multiplies.
struct Operands {
    const void * groups;  // packed weights of n_groups groups of 8 outputs, packed_weights.h
    int n_groups;         // 1..MAX_GROUPS
    int64_t n_inputs;     // length of a row
    const void * tokens;  // the first quantised token, activations.h; the others follow at distances of token_bytes()
    int n_tokens;         // 1..MAX_TOKENS
    float * out;          // of the first token, [n_groups * 8]; those of the others follow at distances of out_stride
    int64_t out_stride;   // floats
};

/// The sums are those of ggml's own products of quantised rows, added in another order.
using Multiply = void (*)(const Operands & operands) noexcept;

/// The product for weights of a type on this processor; nullptr if there is none.
[[nodiscard]] Multiply multiply_for(ggml_type weights) noexcept;

/// Instructions that multiply_for() uses here: "AVX-512 VNNI", "AVX2", or "none".
[[nodiscard]] std::string_view instructions() noexcept;

// Each for its own instructions; only where the processor has them.
[[nodiscard]] Multiply multiply_avx2(ggml_type weights) noexcept;
[[nodiscard]] Multiply multiply_vnni(ggml_type weights) noexcept;

}  // namespace harp::kernels
