// The output rows of the last decode and their logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "harp/forward_pass.h"
#include "method/mixing.h"

namespace harp::forward {

/// A row's place: its index in a Sequence.
struct Place {
    llama_seq_id sequence = 0;
    size_t index = 0;
};

struct Output {
    int32_t row = 0;  // index in the caller's batch
    llama_seq_id sequence = 0;
    size_t index = 0;           // of the row in its Sequence
    std::vector<Place> others;  // of a row of several sequences: the places in those after the first
    llama_pos position = 0;
    // options at the time of the decode
    Gate gate = Gate::entropy;
    double threshold = 0;
    method::Mix mix;

    StepRecord record;
    bool is_judged = false;                // the record is filled in
    bool is_mixed = false;                 // its logits are mixed with a second pass
    std::vector<int32_t> twin_rows;        // inner rows of its twins, if they were in the same batch (fused)
    std::vector<float> vanilla, reframed;  // [n_vocab], copies kept at a mix if they are wanted
};

/// Logits stay in llama.cpp's buffer until keep() copies them, because the next llama_decode overwrites that buffer.
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

    /// Row `i` of the caller's batch (negative: counted from the last output row back); nullptr if it is no output row.
    [[nodiscard]] Output * find(int32_t i);
    /// Final logits, [n_vocab]
    [[nodiscard]] std::span<float> logits(const Output & output);
    /// Final logits of all output rows, [size(), n_vocab]
    [[nodiscard]] float * all_logits();

  private:
    std::vector<Output> rows_;
    size_t n_vocab_ = 0;
    std::vector<float *> in_llama_buffer_;  // [rows], used until keep()
    std::vector<float> kept_;               // [rows, n_vocab]
    bool are_kept_ = false;
};

}  // namespace harp::forward
