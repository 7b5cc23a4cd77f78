#include "kernels/cpu_back_end.h"

#include "ggml-backend.h"
#include "traits.h"

#ifdef GGML_BACKEND_DL

// Defined here because the back end's own definitions, in a library loaded later, cannot be linked to.
namespace ggml::cpu {

tensor_traits::~tensor_traits() = default;
extra_buffer_type::~extra_buffer_type() = default;

}  // namespace ggml::cpu

#endif

namespace harp::kernels {

namespace {

ggml_backend_reg_t registered() noexcept {
    return ggml_backend_reg_by_name("CPU");
}

/// The function of that name from patches/cpu-extra-buffer-types.patch; nullptr if the back end lacks the patch.
template <class Function>
void get(ggml_backend_reg_t reg, const char * name, Function *& function) noexcept {
    function = reinterpret_cast<Function *>(ggml_backend_reg_get_proc_address(reg, name));
}

CpuBackEnd find() noexcept {
    ggml_backend_reg_t reg = registered();
    CpuBackEnd found{};
    found.device = ggml_backend_reg_dev_get(reg, 0);
    get(reg, "ggml_backend_cpu_get_extra_buffer_types", found.get_extra_buffer_types);
    get(reg, "ggml_barrier", found.barrier);
    get(reg, "ggml_threadpool_chunk_set", found.chunk_set);
    get(reg, "ggml_threadpool_chunk_add", found.chunk_add);
    return found;
}

}  // namespace

bool load_cpu_back_end() noexcept {
    if (registered() == nullptr) ggml_backend_load_all();
    return registered() != nullptr && cpu_back_end().get_extra_buffer_types != nullptr;
}

const CpuBackEnd & cpu_back_end() noexcept {
    static const CpuBackEnd found = find();
    return found;
}

}  // namespace harp::kernels
