// Speculation in the server: second passes behind a draft's rejected tokens are spared, as `harp generate` does.
//
// patches/server-harp.patch decodes its batches by this.
#pragma once

#include <cstdint>
#include <vector>

#include "common.h"
#include "llama.h"

struct common_sampler;

namespace harp::server {

/// What a slot has in the batch: a token that was sampled and a draft of those after it. Of the slot; valid while it decodes.
struct DraftedRows {
    common_sampler & sampler;                 ///< a clone of it draws ahead
    const std::vector<llama_token> & tokens;  ///< [n] the draft
    const std::vector<int32_t> & rows;        ///< [n + 1] of the batch: the sampled token's, then the drafted ones'
};

/// llama_process of a batch in which these drafts stand, with llama_process's return values.
[[nodiscard]] int32_t decode(llama_context * context, common_batch & batch, const std::vector<DraftedRows> & drafts);

}  // namespace harp::server
