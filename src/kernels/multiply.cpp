#include "kernels/multiply.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace harp::kernels {

namespace {

constexpr std::string_view NAMES[] = {"none", "avx2", "vnni", "amx"};

/// What is fastest with AMX depends on how often the unpacked weights are used (kernels_bench): for few tokens registers, then tiles of
/// bytes, for which weights are hardly unpacked, then tiles of bfloat16, where nothing but multiplication is left. Q6_K has a scale
/// for 16 inputs, half a tile of bytes.
Kernel kernel_with_amx(ggml_type weights, int64_t n_tokens) noexcept {
    const int64_t most_of_registers = weights == GGML_TYPE_Q6_K ? 16 : 10;
    const int64_t most_of_bytes = weights == GGML_TYPE_Q6_K ? 0 : 64;
    if (n_tokens <= most_of_registers) return vnni_kernel(weights);
    return n_tokens <= most_of_bytes ? amx_bytes_kernel(weights) : amx_kernel(weights);
}

#if defined(__x86_64__)

bool has_amx() noexcept {
    constexpr unsigned ALL = 1U << 22 | 1U << 24 | 1U << 25;  // bfloat16, tiles, int8 in edx of leaf 7
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & ALL) == ALL && allow_amx();
}

Instructions found() noexcept {
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // and so F16C, which came before
    if (!has_avx2) return Instructions::none;
    const bool has_vnni = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    if (!has_vnni) return Instructions::avx2;
    return has_amx() ? Instructions::amx : Instructions::vnni;
}

#else

Instructions found() noexcept {
    return Instructions::none;
}

#endif

}  // namespace

std::string_view name_of(Instructions instructions) noexcept {
    return NAMES[static_cast<size_t>(instructions)];
}

std::optional<Instructions> instructions_of(std::string_view name) noexcept {
    for (const Instructions instructions : ALL_INSTRUCTIONS) {
        if (name_of(instructions) == name) return instructions;
    }
    return std::nullopt;
}

Instructions best_instructions() noexcept {
    static const Instructions instructions = found();
    return instructions;
}

Kernel kernel_for(ggml_type weights, int64_t n_tokens, Instructions instructions) noexcept {
    switch (instructions) {
        case Instructions::amx: return kernel_with_amx(weights, n_tokens);
        case Instructions::vnni: return vnni_kernel(weights);
        case Instructions::avx2: return avx2_kernel(weights);
        default: return {};
    }
}

}  // namespace harp::kernels
