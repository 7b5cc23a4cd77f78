// Where the products stand in ggml: a buffer type of its CPU back end, as its AMX and repack variants are.
//
//     load     llama.cpp asks each buffer type in turn whether it can multiply with a weight; ours is asked first. What it takes is
//              packed as it is read from the file and kept nowhere else.
//     decode   ggml's CPU back end finds by a weight's buffer who multiplies with it; ours does, in ggml's own threads:
//              tokens are quantised, a token a thread; a barrier; groups of eight outputs are taken by whoever is free.
#pragma once

#include "ggml-backend.h"

namespace harp::kernels {

/// Says whether models that are loaded from now on use the products; those that were loaded keep what they have. The first call, on
/// or off, puts the buffer type in front of ggml's own: after the first model has been loaded it would have no effect.
/// Without the instructions they need nothing is changed. Thread-safe.
void set_enabled(bool is_enabled);

/// The buffer type.
[[nodiscard]] ggml_backend_buffer_type_t buffer_type();

}  // namespace harp::kernels
