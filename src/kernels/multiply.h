// Matrix multiplication kernels: packed weights times the quantised activations of a few tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "ggml.h"

namespace harp::kernels {

/// Groups of 8 outputs that share the loads of the activations: multiples of this many are multiplied fastest.
inline constexpr int TILE_GROUPS = 2;

/// What one call multiplies.
struct Operands {
    const void * groups;  // packed weights of n_groups groups of 8 outputs, packed_weights.h
    int64_t n_groups;
    int64_t n_inputs;     // length of a row
    const void * tokens;  // the first quantised token; the others follow at distances of token_layout().bytes
    int64_t n_tokens;
    float * out;         // of the first token, [n_groups * 8]; those of the others follow at distances of out_stride
    int64_t out_stride;  // floats
};

/// A kernel. Its sums are those of ggml's own kernels for quantised rows, added in another order.
using Multiply = void (*)(const Operands & operands) noexcept;

/// The kernel for weights of a type on this processor; nullptr if there is none.
[[nodiscard]] Multiply multiply_for(ggml_type weights) noexcept;

/// Instructions that multiply_for() uses here: "AVX-512 VNNI", "AVX2", or "none".
[[nodiscard]] std::string_view instructions() noexcept;

// Each for its own instructions; only where the processor has them.
[[nodiscard]] Multiply multiply_avx2(ggml_type weights) noexcept;
[[nodiscard]] Multiply multiply_vnni(ggml_type weights) noexcept;

}  // namespace harp::kernels
