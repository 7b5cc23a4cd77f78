#include "kernels/multiply.h"

namespace harp::kernels {

namespace {

enum class Instructions { none, avx2, vnni };

Instructions found() noexcept {
#if defined(__x86_64__)
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // and so F16C, which came before
    if (!has_avx2) return Instructions::none;
    const bool has_vnni = __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    return has_vnni ? Instructions::vnni : Instructions::avx2;
#else
    return Instructions::none;
#endif
}

Instructions here() noexcept {
    static const Instructions instructions = found();
    return instructions;
}

}  // namespace

std::string_view instructions() noexcept {
    switch (here()) {
        case Instructions::vnni: return "AVX-512 VNNI";
        case Instructions::avx2: return "AVX2";
        default: return "none";
    }
}

Multiply multiply_for(ggml_type weights) noexcept {
    switch (here()) {
        case Instructions::vnni: return multiply_vnni(weights);
        case Instructions::avx2: return multiply_avx2(weights);
        default: return nullptr;
    }
}

}  // namespace harp::kernels
