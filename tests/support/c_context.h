// Contexts of the C API.
#pragma once

#include <memory>
#include <vector>

#include "harp/harp.h"

namespace harp::testing {

struct ContextDeleter {
    void operator()(llama_context * context) const { harp_free(context); }
};
using Context = std::unique_ptr<llama_context, ContextDeleter>;

/// Decodes tokens as one batch of sequence 0, with logits for the last. @return what harp_decode() returns
inline int32_t decode(llama_context * context, std::vector<llama_token> tokens) {
    return harp_decode(context, llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size())));
}

}  // namespace harp::testing
