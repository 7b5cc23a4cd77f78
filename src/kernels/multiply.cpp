#include "kernels/multiply.h"

namespace harp::kernels {

namespace {

bool has_avx2() noexcept {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // and so F16C, which came before
#else
    return false;
#endif
}

}  // namespace

std::string_view instructions() noexcept {
    return has_avx2() ? "AVX2" : "none";
}

MultiplyGroup multiply_for(ggml_type weights) noexcept {
    return has_avx2() ? multiply_avx2(weights) : nullptr;
}

}  // namespace harp::kernels
