#include "forward/inner_batch.h"

namespace harp::forward {

Sequence::Ids SequenceLayout::ids(llama_seq_id sequence) const {
    Sequence::Ids ids{clean(sequence), {}};
    for (uint32_t r = 0; r < n_twins; ++r) ids.twins.push_back(twin(sequence, r));
    return ids;
}

void InnerBatch::add(llama_token token, llama_pos position, const EmbeddingRow & embedding,
                     std::span<const llama_seq_id> ids, bool is_output) {
    if (embedding.chunk) {
        rows_.add(embedding, position, ids, is_output);
    } else {
        rows_.add(token, position, ids, is_output);
    }
    chunk_ = embedding.chunk;
}

int32_t InnerBatch::add_clean(const CallerRow & row, const SequenceLayout & layout) {
    std::vector<llama_seq_id> ids;
    for (const llama_seq_id s : row.sequences) ids.push_back(layout.clean(s));
    add(row.token, row.position, row.embedding, ids, row.is_output);
    return static_cast<int32_t>(size()) - 1;
}

int32_t InnerBatch::add_twin(const ViewRow & row, bool is_output, llama_seq_id sequence, uint32_t reframing,
                             const Draw & draw, llama_seq_id inner) {
    add(row.token, row.position, row.embedding, {&inner, 1}, is_output);
    twin_rows_.push_back({inner, row.position, {sequence, row.ordinal, draw.index, reframing}, draw, row.is_reframed});
    return static_cast<int32_t>(size()) - 1;
}

void InnerBatch::clear() {
    rows_.clear();
    twin_rows_.clear();
    chunk_.reset();
}

}  // namespace harp::forward
