#include "capi/batch_conversion.h"

#include <algorithm>
#include <string>

#include "harp/error.h"
#include "llama-batch.h"

namespace harp::capi {

namespace {

void check_content(const llama_batch_ext & batch) {
    for (size_t i = 1; i < batch.tokens.size(); ++i) {
        const bool same = (batch.tokens[i].id == LLAMA_TOKEN_NULL) == (batch.tokens[0].id == LLAMA_TOKEN_NULL) &&
                          batch.tokens[i].has_embd == batch.tokens[0].has_embd;
        if (!same) {
            throw Error(ErrorCode::invalid_batch,
                        "batch row " + std::to_string(i) + ": tokens or embeddings must be in all rows or in none");
        }
    }
    const bool has_embeddings = !batch.tokens.empty() && batch.tokens[0].has_embd;
    if (has_embeddings && batch.n_embd != batch.n_embd_inp) {
        throw Error(ErrorCode::invalid_batch, "embeddings of " + std::to_string(batch.n_embd) +
                                                  " numbers; allowed: " + std::to_string(batch.n_embd_inp));
    }
}

}  // namespace

ConvertedBatch::ConvertedBatch(const llama_batch_ext & batch) {
    check_content(batch);
    for (const auto & token : batch.tokens) {
        std::vector<llama_seq_id> ids(token.seq_ids.begin(), token.seq_ids.end());
        std::sort(ids.begin(), ids.end());
        rows_.add(token.id, token.pos[0], ids, token.output);
    }
    view_ = rows_.view();
    if (!batch.tokens.empty() && batch.tokens[0].has_embd) add_embeddings(batch);
}

void ConvertedBatch::add_embeddings(const llama_batch_ext & batch) {
    for (const auto & token : batch.tokens) {
        const auto begin = batch.embd.begin() + static_cast<std::ptrdiff_t>(token.embd_off);
        embeddings_.insert(embeddings_.end(), begin, begin + static_cast<std::ptrdiff_t>(batch.n_embd));
    }
    view_.embd = embeddings_.data();
    if (batch.tokens[0].id != LLAMA_TOKEN_NULL) return;  // rows with token and embedding have the token's one position
    for (size_t section = 0; section < batch.n_pos_per_embd; ++section) {
        for (const auto & token : batch.tokens) positions_.push_back(token.pos[section]);
    }
    view_.pos = positions_.data();
    view_.token = nullptr;
}

}  // namespace harp::capi
