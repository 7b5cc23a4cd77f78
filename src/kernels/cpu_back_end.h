// What the kernels need from ggml's CPU back end. It is linked or, with GGML_BACKEND_DL, loaded in a variant for this
// processor.
#pragma once

#include <vector>

#include "ggml-cpu.h"

namespace harp::kernels {

/// The back end's device and functions, by ggml's names.
struct CpuBackEnd {
    ggml_backend_dev_t device;
    std::vector<ggml_backend_buffer_type_t> & (*get_extra_buffer_types)();
    void (*barrier)(ggml_threadpool * threads);
    void (*chunk_set)(ggml_threadpool * threads, int chunk);
    int (*chunk_add)(ggml_threadpool * threads, int n_chunks);
};

/// Loads the back ends if there is no CPU back end yet.
/// @return whether there is one that kernels can attach to; one of another build may lack our patch
[[nodiscard]] bool load_cpu_back_end() noexcept;

/// To be called only if load_cpu_back_end() is true.
[[nodiscard]] const CpuBackEnd & cpu_back_end() noexcept;

}  // namespace harp::kernels
