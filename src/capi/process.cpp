// harp_process: llama_process for handles with HARP. llama_batch_ext is opaque in llama.h; this one file reads the
// pinned source's own definition of it (src/llama-batch.h).
#include <algorithm>
#include <vector>

#include "capi/registry.h"
#include "forward/batch_rows.h"
#include "harp/harp.h"
#include "llama-batch.h"

extern "C" int32_t harp_process(llama_context * ctx, llama_process_type type, llama_batch_ext * batch) {
    if (harp::capi::find(ctx) == nullptr || type != LLAMA_PROCESS_TYPE_DECODE) return llama_process(ctx, type, batch);
    harp::forward::BatchRows rows;
    bool has_embeddings = false;
    for (const auto & token : batch->tokens) {
        has_embeddings = has_embeddings || token.has_embd;
        std::vector<llama_seq_id> ids(token.seq_ids.begin(), token.seq_ids.end());
        std::sort(ids.begin(), ids.end());
        rows.add(token.id, token.pos[0], ids, token.output);
    }
    llama_batch view = rows.view();
    if (has_embeddings) view.token = nullptr;  // refused by name in decode()
    return harp_decode(ctx, view);
}
