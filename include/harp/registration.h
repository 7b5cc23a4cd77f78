// The C++ side of the C API: the ForwardPass behind a handle, and the options of contexts from harp_init_from_model.
//
// Code written for llama.h and compiled with harp/drop_in.h (llama.cpp's `common`, for example) reaches HARP through
// this.
#pragma once

#include <optional>

#include "harp/forward_pass.h"

namespace harp {

/// The pass behind a handle; nullptr if the handle is not one of harp_init_from_model's. Thread-safe.
[[nodiscard]] ForwardPass * find_pass(const llama_context * context);

/// A context with a ForwardPass behind it, like one of harp_init_from_model's but with options of its own. To be freed
/// by harp_free.
/// @throws what ForwardPass() throws
[[nodiscard]] llama_context * init_from_model(llama_model & model, llama_context_params params,
                                              const std::optional<Options> & options, uint32_t n_ctx_twin = 0);

/// Options of the contexts that harp_init_from_model makes from now on; nullopt: HARP off.
/// @param n_ctx_twin see ForwardPass()
/// @throws Error{invalid_option}
void set_default_options(const std::optional<Options> & options, uint32_t n_ctx_twin = 0);
/// Those options. Thread-safe.
[[nodiscard]] std::optional<Options> default_options();

/// harp_process for batches whose last rows the caller may take back (speculation): see CountUsefulOutputs.
[[nodiscard]] int32_t process(llama_context * context, llama_process_type type, llama_batch_ext * batch,
                              const CountUsefulOutputs & count_useful);

}  // namespace harp
