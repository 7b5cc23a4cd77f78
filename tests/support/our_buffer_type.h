// The buffer type of our kernels.
#pragma once

#include <string_view>

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "harp/kernels.h"

namespace harp::testing {

/// nullptr: there are no kernels of ours for this processor
inline ggml_backend_buffer_type_t our_buffer_type() {
    harp_set_kernels(true);
    ggml_backend_reg_t reg = ggml_backend_cpu_reg();
    const auto extra = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(reg, "ggml_backend_dev_get_extra_bufts"));
    for (ggml_backend_buffer_type_t * type = extra(ggml_backend_reg_dev_get(reg, 0)); *type != nullptr; ++type) {
        if (std::string_view(ggml_backend_buft_name(*type)) == "HARP") return *type;
    }
    return nullptr;
}

}  // namespace harp::testing
