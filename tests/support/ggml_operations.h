// Single operations of ggml on its CPU back end.
#pragma once

#include <gtest/gtest.h>

#include <random>
#include <string_view>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "harp/kernels.h"

namespace harp::testing {

/// One of the CPU back end's extra buffer types; nullptr if this processor or build does not have it.
inline ggml_backend_buffer_type_t extra_buffer_type(std::string_view name) {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    const auto extra_types = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu), "ggml_backend_dev_get_extra_bufts"));
    if (extra_types == nullptr) return nullptr;
    for (ggml_backend_buffer_type_t * type = extra_types(cpu); type != nullptr && *type != nullptr; ++type) {
        if (name == ggml_backend_buft_name(*type)) return *type;
    }
    return nullptr;
}

/// The buffer type of our kernels.
inline ggml_backend_buffer_type_t our_buffer_type() {
    harp_set_kernels(true);
    return extra_buffer_type("HARP");
}

inline std::vector<float> normal_values(int64_t n, std::mt19937 & random) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(n));
    for (float & value : values) value = normal(random);
    return values;
}

inline ggml_context_ptr tensors_without_data() {
    return ggml_context_ptr(
        ggml_init({ggml_graph_overhead() + 16 * ggml_tensor_overhead(), nullptr, /*no_alloc=*/true}));
}

inline ggml_backend_ptr cpu_with_threads(int n_threads) {
    ggml_backend_ptr cpu(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    ggml_backend_cpu_set_n_threads(cpu.get(), n_threads);
    return cpu;
}

/// Computes `result`, a tensor of `context`.
inline void compute(ggml_backend_t backend, ggml_context * context, ggml_tensor * result) {
    ggml_cgraph * graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, result);
    EXPECT_EQ(ggml_backend_graph_compute(backend, graph), GGML_STATUS_SUCCESS);
}

/// All values of a tensor of floats.
inline std::vector<float> values_of(const ggml_tensor * tensor) {
    std::vector<float> values(static_cast<size_t>(ggml_nelements(tensor)));
    ggml_backend_tensor_get(tensor, values.data(), 0, values.size() * sizeof(float));
    return values;
}

}  // namespace harp::testing
