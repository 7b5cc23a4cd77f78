// A llama_batch that owns its arrays, and the caller's batch read into plain rows.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "llama.h"

namespace harp::forward {

/// One token row of a caller's batch, with llama_batch's NULL rules already applied.
struct TokenRow {
    llama_token token = 0;
    llama_pos position = 0;
    std::vector<llama_seq_id> sequences;  ///< at least one; the caller's ids
    bool is_output = false;
};

/// What a batch is checked against.
struct BatchLimits {
    uint32_t n_batch = 0;
    uint32_t n_seq_max = 0;
    int32_t n_vocab = 0;
};

/// Reads a caller's batch.
/// @param next_position where a sequence continues, for batches without positions
/// @throws Error{invalid_batch} naming the row and what is wrong; Error{unsupported_call} for embedding rows
[[nodiscard]] std::vector<TokenRow> read_rows(const llama_batch & batch, const BatchLimits & limits,
                                              const std::function<llama_pos(llama_seq_id)> & next_position);

/// Builder of a llama_batch of token rows.
class BatchRows {
  public:
    void clear();
    void add(llama_token token, llama_pos position, std::span<const llama_seq_id> sequences, bool is_output);
    [[nodiscard]] size_t size() const noexcept { return tokens_.size(); }
    [[nodiscard]] llama_token token(size_t row) const { return tokens_[row]; }
    [[nodiscard]] std::span<const llama_seq_id> sequences(size_t row) const;
    /// Valid until the next add() or clear().
    [[nodiscard]] llama_batch view();

  private:
    std::vector<llama_token> tokens_;
    std::vector<llama_pos> positions_;
    std::vector<int32_t> n_sequences_;
    std::vector<llama_seq_id> sequence_ids_;  // of all rows, one after the other
    std::vector<size_t> first_sequence_;      // [row]: where a row's ids begin in sequence_ids_
    std::vector<llama_seq_id *> sequence_pointers_;
    std::vector<int8_t> is_output_;
};

}  // namespace harp::forward
