// The C API: sampling from the final logits.
#include <string>
#include <vector>

#include "capi/guard.h"
#include "capi/registry.h"
#include "harp/harp.h"

namespace {

using harp::Error;
using harp::ErrorCode;
using harp::ForwardPass;

/// Like llama_sampler_sample, with the pass's logits.
llama_token sample(llama_sampler * smpl, ForwardPass & pass, int32_t idx) {
    const float * logits = pass.logits(idx);
    if (logits == nullptr) {
        throw Error(ErrorCode::invalid_input, "row " + std::to_string(idx) + " of the last batch is not an output row");
    }
    std::vector<llama_token_data> candidates;
    candidates.reserve(static_cast<size_t>(pass.n_vocab()));
    for (llama_token id = 0; id < pass.n_vocab(); ++id) candidates.push_back({id, logits[id], 0.0F});
    llama_token_data_array array = {candidates.data(), candidates.size(), -1, false};
    llama_sampler_apply(smpl, &array);
    if (array.selected < 0) {
        throw Error(ErrorCode::invalid_input,
                    "the sampler chose no token: its last part must be one that chooses, such as greedy");
    }
    const llama_token token = array.data[array.selected].id;
    llama_sampler_accept(smpl, token);
    return token;
}

}  // namespace

llama_token harp_sampler_sample(llama_sampler * smpl, llama_context * ctx, int32_t idx) {
    return harp::capi::guarded(
        [&] {
            ForwardPass * pass = harp::capi::find_enabled(ctx);
            return pass != nullptr ? sample(smpl, *pass, idx) : llama_sampler_sample(smpl, ctx, idx);
        },
        harp::capi::always(LLAMA_TOKEN_NULL));
}

bool harp_set_sampler(llama_context * ctx, llama_seq_id seq_id, llama_sampler * smpl) {
    return harp::capi::guarded(
        [&] {
            if (harp::capi::find_enabled(ctx) != nullptr) return smpl == nullptr;
            return llama_set_sampler(ctx, seq_id, smpl);
        },
        harp::capi::always(false));
}
