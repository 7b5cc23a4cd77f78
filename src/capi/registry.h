// Which llama_context has a ForwardPass over it. Handles that are not listed are plain llama.cpp.
#pragma once

#include <memory>

#include "harp/forward_pass.h"

namespace harp::capi {

/// @return the pass over a context or over a context's memory; nullptr if it is a plain one. Thread-safe.
[[nodiscard]] ForwardPass * find(const llama_context * context);
[[nodiscard]] ForwardPass * find(llama_memory_t memory);
/// The pass over a context if HARP is on there, else nullptr. Thread-safe.
[[nodiscard]] ForwardPass * find_enabled(const llama_context * context);

/// Lists a pass, which the registry then owns. @return its handle
llama_context * adopt(std::unique_ptr<ForwardPass> pass);
/// Frees an adopted pass. @return false if the context is not one
bool release(llama_context * context);

}  // namespace harp::capi
