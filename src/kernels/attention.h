// ggml's attention (FLASH_ATTN_EXT) over a cache in half precision.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ggml-cpu.h"
#include "traits.h"

namespace harp::kernels {

/// A head's query of one token, and what it sees of some cells.
struct AttentionRow {
    const float * query;    // [key_length]
    const uint16_t * mask;  // half precision, [n_cells], -inf: not seen; nullptr: all are seen
    float * out;            // [value_length], sum of exp(score - maximum) * value over the cells seen
    float maximum;          // of the scores; -inf: none is seen
    float sum;              // of exp(score - maximum)
};

/// Rows that share keys and values, and some cells of those.
struct AttentionPart {
    std::span<AttentionRow> rows;     // at most MOST_ATTENTION_ROWS
    const char *keys, *values;        // of the first cell, half precision
    size_t key_stride, value_stride;  // bytes from a cell to the next
    size_t key_length, value_length;  // multiples of ATTENTION_LENGTHS
    size_t n_cells;
    float scale;      // of scores
    float cap;        // of scores, by a hyperbolic tangent; 0: none
    float * scratch;  // attention_scratch() floats
};

inline constexpr size_t MOST_ATTENTION_ROWS = 32;
inline constexpr size_t ATTENTION_LENGTHS = 16;
/// Cells that are taken together.
inline constexpr size_t ATTENTION_BLOCK = 32;

[[nodiscard]] constexpr size_t attention_scratch(size_t key_length, size_t value_length) {
    return ATTENTION_BLOCK * (key_length + value_length + MOST_ATTENTION_ROWS);
}

/// Fills in the rows' results. A row's depend on its own query, mask and cells alone, bit for bit, not on the rows beside it.
using Attend = void(const AttentionPart & part) noexcept;
Attend attend_avx2, attend_avx512;

/// Whether `op` is one of those that Attention computes, on this processor.
[[nodiscard]] bool can_attend(const ggml_tensor & op) noexcept;

/// What ggml's threads do together for an operation: whoever is free takes the rows that share a head of keys and values, or a chunk
/// of their cells where there are few such rows. The number of threads changes no bit.
class Attention final : public ggml::cpu::tensor_traits {
  public:
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override;
    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override;
};

}  // namespace harp::kernels
