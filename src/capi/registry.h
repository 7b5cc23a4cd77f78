// Which llama_contexts have a ForwardPass. Handles not in the registry are plain llama.cpp.
#pragma once

#include <memory>

#include "harp/forward_pass.h"

namespace harp::capi {

/// @return the pass of a context, or of a context's memory; nullptr for plain llama.cpp. Thread-safe.
[[nodiscard]] ForwardPass * find(const llama_context * context);
[[nodiscard]] ForwardPass * find(llama_memory_t memory);
/// The pass of a context if HARP is on, else nullptr. Thread-safe.
[[nodiscard]] ForwardPass * find_enabled(const llama_context * context);

/// Adds a pass to the registry, which then owns it. @return its handle
llama_context * adopt(std::unique_ptr<ForwardPass> pass);
/// Frees an adopted pass. @return false if the context has none
bool release(llama_context * context);

}  // namespace harp::capi
