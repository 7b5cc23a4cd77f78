// Matrix multiplication kernels: packed weights times the activations of a batch's tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "ggml.h"

namespace harp::kernels {

/// What one call multiplies.
struct Operands {
    const void * groups;  // packed weights of n_groups groups of 8 outputs, packed_weights.h
    int64_t n_groups;
    int64_t n_inputs;     // length of a row
    const void * tokens;  // as the kernel's quantize() wrote them
    int64_t n_tokens;
    float * out;           // of the first row, [n_groups * 8]; the others follow at distances of out_stride
    int64_t out_stride;    // floats
    const int32_t * rows;  // which row of `out` is each token's; nullptr: in order
    void * scratch;        // memory of this call alone, the kernel's scratch_bytes(), at a multiple of 64 bytes
};

/// Multiples of this many groups of 8 outputs are multiplied fastest by all kernels.
inline constexpr int GROUPS_TOGETHER = 4;

/// How weights of one type are multiplied with some instructions.
struct Kernel {
    /// Bytes of a batch's tokens as quantize() writes them, and of a call's scratch memory.
    size_t (*tokens_bytes)(ggml_type weights, int64_t n_inputs, int64_t n_tokens) noexcept;
    size_t (*scratch_bytes)(int64_t n_tokens) noexcept;

    /// Writes the activations `row` [n_inputs] of a batch's token to its place in `tokens`.
    void (*quantize)(ggml_type weights, const float * row, int64_t n_inputs, int64_t token, char * tokens) noexcept;

    /// nullptr: none for this type
    void (*multiply)(const Operands & operands) noexcept;
};

/// Instructions that kernels are written for, each with those before it.
enum class Instructions { none, avx2, vnni, amx };

inline constexpr Instructions ALL_INSTRUCTIONS[] = {Instructions::none, Instructions::avx2, Instructions::vnni,
                                                    Instructions::amx};

/// "none", "avx2", "vnni", "amx"
[[nodiscard]] std::string_view name_of(Instructions instructions) noexcept;

/// The instructions of that name; nothing for another.
[[nodiscard]] std::optional<Instructions> instructions_of(std::string_view name) noexcept;

/// The last of them that this processor has. The first call asks Linux for permission to use AMX.
[[nodiscard]] Instructions best_instructions() noexcept;

/// The kernel for weights of a type and a batch of `n_tokens` with these instructions, which the processor must have.
[[nodiscard]] Kernel kernel_for(ggml_type weights, int64_t n_tokens, Instructions instructions) noexcept;

// Each for its own instructions; only where the processor has them.
[[nodiscard]] Kernel avx2_kernel(ggml_type weights) noexcept;
[[nodiscard]] Kernel vnni_kernel(ggml_type weights) noexcept;
[[nodiscard]] Kernel amx_kernel(ggml_type weights) noexcept;

/// Whether this process may use AMX; asks Linux for it.
[[nodiscard]] bool allow_amx() noexcept;

}  // namespace harp::kernels
