// harp_process: llama_process for handles with HARP.
#include "capi/batch_conversion.h"
#include "capi/guard.h"
#include "capi/registry.h"
#include "harp/harp.h"
#include "harp/registration.h"

int32_t harp::process(llama_context * context, llama_process_type type, llama_batch_ext * batch,
                      const CountUsefulOutputs & count_useful) {
    return capi::guarded(
        [&] {
            ForwardPass * pass = capi::find_enabled(context);
            if (pass == nullptr || type != LLAMA_PROCESS_TYPE_DECODE) return llama_process(context, type, batch);
            pass->decode(capi::ConvertedBatch(*batch).batch(), count_useful);
            return 0;
        },
        capi::decode_result);
}

int32_t harp_process(llama_context * ctx, llama_process_type type, llama_batch_ext * batch) {
    return harp::process(ctx, type, batch, {});
}
