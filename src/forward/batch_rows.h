// The caller's batch as plain rows, and a llama_batch that owns its arrays.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "llama.h"

namespace harp::forward {

/// Embeddings that a caller decoded in one batch (a picture, or part of one). They are kept because the twins decode
/// them too.
struct EmbeddingChunk {
    size_t n_embd = 0;                 ///< floats per row
    size_t n_pos = 1;                  ///< positions per row: 4 with M-RoPE
    bool is_causal = true;             ///< if not, its rows attend to each other, and must be in one micro-batch
    std::vector<float> values;         ///< [rows, n_embd]
    std::vector<llama_pos> positions;  ///< [rows, n_pos]

    bool operator==(const EmbeddingChunk &) const = default;
};

/// A row of a chunk; without a chunk the row is a token.
struct EmbeddingRow {
    std::shared_ptr<const EmbeddingChunk> chunk;
    size_t index = 0;
};

/// One row of a caller's batch, with llama_batch's NULL rules already applied.
struct CallerRow {
    llama_token token = LLAMA_TOKEN_NULL;  ///< none if the row is an embedding
    llama_pos position = 0;                ///< with M-RoPE the first of the row's positions
    std::vector<llama_seq_id> sequences;   ///< at least one; the caller's ids
    bool is_output = false;
    EmbeddingRow embedding;
};

/// What a batch is checked against.
struct BatchLimits {
    uint32_t n_batch = 0;
    uint32_t n_seq_max = 0;
    int32_t n_vocab = 0;
    size_t n_embd = 0;      ///< of batch.embd
    size_t n_pos = 1;       ///< positions per row of batch.embd
    bool is_causal = true;  ///< the context's current attention
};

/// Reads a caller's batch.
/// @param next_position the next position of a sequence, for batches without positions
/// @throws Error{invalid_batch} naming the row and the fault
[[nodiscard]] std::vector<CallerRow> read_rows(const llama_batch & batch, const BatchLimits & limits,
                                               const std::function<llama_pos(llama_seq_id)> & next_position);

/// Builder of a llama_batch, of token rows or of embedding rows.
class BatchRows {
  public:
    void clear();
    void add(llama_token token, llama_pos position, std::span<const llama_seq_id> sequences, bool is_output);
    /// @param position where the row is now; its chunk has the position at which it came
    void add(const EmbeddingRow & row, llama_pos position, std::span<const llama_seq_id> sequences, bool is_output);
    [[nodiscard]] size_t size() const noexcept { return n_sequences_.size(); }
    /// Valid until the next add() or clear().
    [[nodiscard]] llama_batch view();

  private:
    void add_sequences(std::span<const llama_seq_id> sequences, bool is_output);

    std::vector<llama_token> tokens_;
    std::vector<EmbeddingRow> embeddings_;
    std::vector<llama_pos> embedding_positions_;  // [row]
    std::vector<float> embedding_values_;         // for view(): [rows, n_embd]
    std::vector<llama_pos> positions_;            // of tokens; for view() of embeddings: [n_pos, rows]
    std::vector<int32_t> n_sequences_;
    std::vector<llama_seq_id> sequence_ids_;  // of all rows, one after the other
    std::vector<size_t> first_sequence_;      // [row]: where the row's ids begin in sequence_ids_
    std::vector<llama_seq_id *> sequence_pointers_;
    std::vector<int8_t> is_output_;
};

}  // namespace harp::forward
