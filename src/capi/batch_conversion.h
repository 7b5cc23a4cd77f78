// Converts a llama_batch_ext to a llama_batch, which ForwardPass::decode takes.
#pragma once

#include <vector>

#include "forward/batch_rows.h"
#include "llama.h"

namespace harp::capi {

/// Arrays of the llama_batch that means the same as a llama_batch_ext (opaque in llama.h; the pinned source defines it
/// in src/llama-batch.h). A token row has one position, an embedding row as many as the model has for each row
/// (M-RoPE), in llama_batch's order: all first positions, then all second positions, ...
class ConvertedBatch {
  public:
    /// @throws Error{invalid_batch} where llama_process refuses too: token ids or embeddings in only some of the rows,
    ///                              or embeddings of another width than the decoder's
    explicit ConvertedBatch(const llama_batch_ext & batch);
    [[nodiscard]] const llama_batch & batch() const noexcept { return view_; }
    ConvertedBatch(const ConvertedBatch &) = delete;
    ConvertedBatch & operator=(const ConvertedBatch &) = delete;

  private:
    void add_embeddings(const llama_batch_ext & batch);

    forward::BatchRows rows_;
    std::vector<float> embeddings_;     // [rows, n_embd]
    std::vector<llama_pos> positions_;  // [n_pos_per_embd, rows]
    llama_batch view_{};                // of the arrays above
};

}  // namespace harp::capi
