// The output rows of the last decode and their logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "harp/forward_pass.h"
#include "method/mixing.h"

namespace harp::forward {

struct Output {
    int32_t row = 0;  // in the caller's batch
    llama_seq_id sequence = 0;
    size_t index = 0;  // of the row in its Sequence
    llama_pos position = 0;
    // options at the time of the decode
    Gate gate = Gate::entropy;
    double threshold = 0;
    method::Mix mix;

    StepRecord record;
    bool is_judged = false;                // record holds the entropy
    bool is_mixed = false;                 // its logits hold the mix with a second pass
    std::vector<int32_t> twin_rows;        // inner rows of its twins in the same batch (fused)
    std::vector<float> vanilla, reframed;  // [n_vocab], kept where they are wanted and a second pass was mixed
};

/// Logits stay in llama.cpp's buffer until keep(): the next llama_decode overwrites it.
class Outputs {
  public:
    void clear(size_t n_vocab);
    void add(Output output, float * in_llama_buffer);
    void keep();

    [[nodiscard]] size_t size() const noexcept { return rows_.size(); }
    [[nodiscard]] Output & operator[](size_t i) { return rows_[i]; }
    [[nodiscard]] const Output & operator[](size_t i) const { return rows_[i]; }
    [[nodiscard]] auto begin() noexcept { return rows_.begin(); }
    [[nodiscard]] auto end() noexcept { return rows_.end(); }
    [[nodiscard]] auto begin() const noexcept { return rows_.begin(); }
    [[nodiscard]] auto end() const noexcept { return rows_.end(); }

    /// Row `i` of the caller's batch (negative: from the last output row back); nullptr if it is not an output row.
    [[nodiscard]] Output * find(int32_t i);
    /// [n_vocab], final
    [[nodiscard]] std::span<float> logits(const Output & output);
    /// [size(), n_vocab]
    [[nodiscard]] float * all_logits();

  private:
    std::vector<Output> rows_;
    size_t n_vocab_ = 0;
    std::vector<float *> in_llama_buffer_;  // [rows], until they are kept
    std::vector<float> kept_;               // [rows, n_vocab]
    bool are_kept_ = false;
};

}  // namespace harp::forward
