// A llama_batch_ext as a llama_batch, which ForwardPass::decode takes.
#pragma once

#include <vector>

#include "forward/batch_rows.h"
#include "llama.h"

namespace harp::capi {

/// The arrays of the llama_batch that says the same as a llama_batch_ext (opaque in llama.h; its definition is the pinned
/// source's src/llama-batch.h). Token rows have a position each, rows of embeddings as many as the model has a row
/// (M-RoPE), in llama_batch's order: all first ones, then all second ones, ...
class ConvertedBatch {
  public:
    /// @throws Error{invalid_batch} where llama_process refuses: token ids or embeddings in some rows and not in others,
    ///                              embeddings of another width than the decoder's
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
