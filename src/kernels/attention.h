// ggml's attention (FLASH_ATTN_EXT) over a cache in half precision.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ggml-cpu.h"
#include "traits.h"

namespace harp::kernels {

/// One token's query for one head, and its result over some cells.
struct AttentionRow {
    const float * query;    // [key_length]
    const uint16_t * mask;  // half precision, [n_cells], -inf: cell not seen; nullptr: all are seen
    float * out;            // [value_length], sum of exp(score - maximum) * value over the cells seen
    float maximum;          // of the scores; -inf if no cell is seen
    float sum;              // of exp(score - maximum)
};

/// Rows that share keys and values, and some of the cells.
struct AttentionPart {
    std::span<AttentionRow> rows;     // at most MOST_ATTENTION_ROWS
    const char *keys, *values;        // of the first cell, half precision
    size_t key_stride, value_stride;  // bytes from one cell to the next
    size_t key_length, value_length;  // multiples of ATTENTION_LENGTHS
    size_t n_cells;                   // at most MOST_ATTENTION_CELLS
    float scale;                      // factor of the scores
    float cap;                        // of the scores, by a hyperbolic tangent; 0: none
    float * scratch;                  // attention_scratch() floats
};

inline constexpr size_t MOST_ATTENTION_ROWS = 32;
inline constexpr size_t MOST_ATTENTION_CELLS = 512;
inline constexpr size_t ATTENTION_LENGTHS = 16;
/// Number of cells that are processed together.
inline constexpr size_t ATTENTION_BLOCK = 32;

[[nodiscard]] constexpr size_t attention_scratch(size_t key_length, size_t value_length) {
    return ATTENTION_BLOCK * (key_length + value_length + MOST_ATTENTION_ROWS);
}

/// Fills in the rows' results. A row's result depends only on its own query, mask and cells, bit for bit, not on other
/// rows.
using Attend = void(const AttentionPart & part) noexcept;
Attend attend_avx2, attend_avx512;

/// Whether Attention can compute `op` on this processor.
[[nodiscard]] bool can_attend(const ggml_tensor & op) noexcept;

/// Work that ggml's threads share in an operation. A free thread takes the rows that share a head of keys and values,
/// or, where such rows are few, a chunk of their cells. The result does not depend on the number of threads, bit for
/// bit.
class Attention final : public ggml::cpu::tensor_traits {
  public:
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override;
    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override;
};

}  // namespace harp::kernels
