#include "server/drafts.h"

#include <algorithm>
#include <exception>

#include "harp/registration.h"
#include "sampling.h"

namespace harp::server {

namespace {

/// How many rows of a draft will be sampled from, found by sampling ahead from the logits as they are now.
size_t count_used(llama_context * context, const DraftedRows & draft) {
    try {
        const common_sampler_ptr ahead(common_sampler_clone(&draft.sampler));
        return common_sampler_sample_and_accept_n(ahead.get(), context, draft.rows, draft.tokens).size();
    } catch (const std::exception &) {  // the slot itself will get it when it samples, so that other slots do not
        return draft.rows.size();
    }
}

/// The number of the batch's output rows up to the last one that does not follow a rejected token.
///
///   slot 0   t a b c   a is confirmed, b is not: the rows of b and c will be taken back
///   slot 1   t d e f   d is not: the rows of d, e and f will be taken back
///            1 1 0 0 | 1 0 0 0      useful rows; the number is five, up to the last one
size_t count_useful(llama_context * context, const common_batch & batch, const std::vector<DraftedRows> & drafts) {
    std::vector<char> is_useful(batch.tokens.size());
    for (size_t i = 0; i < is_useful.size(); ++i) is_useful[i] = batch.tokens[i].output ? 1 : 0;
    const auto n_outputs = [](auto begin, auto end) { return static_cast<size_t>(std::count(begin, end, 1)); };
    const std::vector<char> is_output = is_useful;
    for (const DraftedRows & draft : drafts) {
        for (size_t i = count_used(context, draft); i < draft.rows.size(); ++i) {
            is_useful[static_cast<size_t>(draft.rows[i])] = 0;
        }
    }
    const auto last = std::find(is_useful.rbegin(), is_useful.rend(), 1);
    return n_outputs(is_output.begin(), is_output.begin() + (is_useful.rend() - last));
}

}  // namespace

int32_t decode(llama_context * context, common_batch & batch, const std::vector<DraftedRows> & drafts) {
    const CountUsefulOutputs count = [&] { return count_useful(context, batch, drafts); };
    return process(context, LLAMA_PROCESS_TYPE_DECODE, batch.get(), drafts.empty() ? CountUsefulOutputs{} : count);
}

}  // namespace harp::server
