// harp_process: llama_process for handles with HARP.
#include "capi/batch_conversion.h"
#include "capi/guard.h"
#include "capi/registry.h"
#include "harp/harp.h"

int32_t harp_process(llama_context * ctx, llama_process_type type, llama_batch_ext * batch) {
    return harp::capi::guarded(
        [&] {
            harp::ForwardPass * pass = harp::capi::find_enabled(ctx);
            if (pass == nullptr || type != LLAMA_PROCESS_TYPE_DECODE) return llama_process(ctx, type, batch);
            pass->decode(harp::capi::ConvertedBatch(*batch).batch());
            return 0;
        },
        harp::capi::decode_result);
}
