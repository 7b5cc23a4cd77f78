// Speculation in the server: no second passes after a draft's rejected tokens, as in `harp generate`.
//
// patches/server-harp.patch calls this to decode its batches.
#pragma once

#include <cstdint>
#include <vector>

#include "common.h"
#include "llama.h"

struct common_sampler;

namespace harp::server {

/// What a slot has in the batch: a sampled token and a draft of the tokens after it. Refers to the slot while it
/// decodes.
struct DraftedRows {
    common_sampler & sampler;                 ///< a clone of it samples ahead
    const std::vector<llama_token> & tokens;  ///< [n], the draft
    const std::vector<int32_t> & rows;        ///< [n + 1], rows of the batch: the sampled token's, then the draft's
};

/// llama_process for a batch with these drafts in it; the same return values.
[[nodiscard]] int32_t decode(llama_context * context, common_batch & batch, const std::vector<DraftedRows> & drafts);

}  // namespace harp::server
