#include "kernels/multiply.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace harp::kernels {

namespace {

constexpr std::string_view NAMES[] = {"none", "avx2", "vnni", "amx"};

/// Batches of at least this many tokens use AMX tiles. For fewer, unpacking the weights costs more than tiles save
/// (kernels_bench).
int64_t least_tokens_of_tiles(ggml_type weights) noexcept {
    return weights == GGML_TYPE_Q6_K ? 17 : 29;  // Q6_K has twice as many scales, which makes the other kernel slower
}

#if defined(__x86_64__)

bool has_amx() noexcept {
    constexpr unsigned ALL = 1U << 22 | 1U << 24;  // bfloat16 and tiles, in edx of leaf 7
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & ALL) == ALL && allow_amx();
}

Instructions found() noexcept {
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // F16C is older, so it is there too
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
        case Instructions::amx:
            return n_tokens < least_tokens_of_tiles(weights) ? vnni_kernel(weights) : amx_kernel(weights);
        case Instructions::vnni: return vnni_kernel(weights);
        case Instructions::avx2: return avx2_kernel(weights);
        default: return {};
    }
}

}  // namespace harp::kernels
