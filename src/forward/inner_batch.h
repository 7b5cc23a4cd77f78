// The batch of one llama_decode of the inner context: the caller's rows in clean streams, and rows of twins.
#pragma once

#include <cstdint>
#include <vector>

#include "forward/batch_rows.h"
#include "forward/sequence.h"
#include "harp/forward_pass.h"

namespace harp::forward {

/// Which inner sequence ids the caller's sequences and their twins have.
///
///   blocks:       clean 0..n-1, first twins n..2n-1, ...   a batch of clean rows is as without HARP
///   interleaved:  s*(1+R) clean, +1 .. +R its twins        for `fused` with a KV stream for each sequence, where
///                                                          llama.cpp puts only consecutive ids into one micro-batch
struct SequenceLayout {
    uint32_t n_sequences = 1;
    uint32_t n_twins = 0;  // per sequence
    bool is_interleaved = false;

    [[nodiscard]] llama_seq_id clean(llama_seq_id sequence) const {
        return is_interleaved ? sequence * static_cast<llama_seq_id>(1 + n_twins) : sequence;
    }
    [[nodiscard]] llama_seq_id twin(llama_seq_id sequence, uint32_t reframing) const {
        const auto r = static_cast<llama_seq_id>(1 + reframing);
        return is_interleaved ? clean(sequence) + r : sequence + r * static_cast<llama_seq_id>(n_sequences);
    }
    [[nodiscard]] Sequence::Ids ids(llama_seq_id sequence) const;
};

/// A twin's row in an inner batch, for its perturbation.
struct TwinRow {
    llama_seq_id inner = 0;
    llama_pos position = 0;
    RowToPerturb where;  ///< the caller's sequence, ordinal, draw, reframing
    Draw draw;
    bool is_reframed = false;
};

class InnerBatch {
  public:
    /// @return index in the batch
    int32_t add_clean(const CallerRow & row, const SequenceLayout & layout);
    int32_t add_twin(const ViewRow & row, bool is_output, llama_seq_id sequence, uint32_t reframing, const Draw & draw,
                     llama_seq_id inner);

    [[nodiscard]] size_t size() const noexcept { return rows_.size(); }
    [[nodiscard]] const std::vector<TwinRow> & twin_rows() const noexcept { return twin_rows_; }
    /// The chunk that all its rows come from; nullptr if they are tokens. A batch has rows of one kind only.
    [[nodiscard]] const EmbeddingChunk * chunk() const noexcept { return chunk_.get(); }
    [[nodiscard]] llama_batch view() { return rows_.view(); }
    void clear();

  private:
    void add(llama_token token, llama_pos position, const EmbeddingRow & embedding, std::span<const llama_seq_id> ids,
             bool is_output);

    BatchRows rows_;
    std::vector<TwinRow> twin_rows_;
    std::shared_ptr<const EmbeddingChunk> chunk_;
};

}  // namespace harp::forward
