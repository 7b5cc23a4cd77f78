// What the kernels need of ggml's CPU back end, which may be linked or, with GGML_BACKEND_DL, loaded as the variant for this processor.
#pragma once

#include <vector>

#include "ggml-cpu.h"

namespace harp::kernels {

/// Its device and functions, by ggml's names for them.
struct CpuBackEnd {
    ggml_backend_dev_t device;
    std::vector<ggml_backend_buffer_type_t> & (*get_extra_buffer_types)();
    const ggml_type_traits_cpu * (*get_type_traits)(ggml_type type);
    void (*barrier)(ggml_threadpool * threads);
    void (*chunk_set)(ggml_threadpool * threads, int chunk);
    int (*chunk_add)(ggml_threadpool * threads, int n_chunks);
};

/// Loads the back ends if none for the CPU is there yet.
/// @return whether there is one with a place for the kernels: another build's may lack our patch
[[nodiscard]] bool load_cpu_back_end() noexcept;

/// Only where load_cpu_back_end() was true, or would be.
[[nodiscard]] const CpuBackEnd & cpu_back_end() noexcept;

}  // namespace harp::kernels
