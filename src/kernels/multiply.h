// Matrix multiplication kernels: packed weights times the activations of a batch's tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "ggml.h"

namespace harp::kernels {

/// The operands of one call.
struct Operands {
    const void * groups;  // packed weights, packed_weights.h
    int64_t n_outputs;    // rows of weights, a multiple of 8
    int64_t n_inputs;     // length of a row of weights
    const void * tokens;  // as written by the kernel's quantize()
    int64_t n_tokens;
    float * out;           // first row, [n_outputs]; the next ones follow at distances of out_stride
    int64_t out_stride;    // floats
    const int32_t * rows;  // the row of `out` for each token; nullptr: in order
    void * scratch;        // for this call only: the kernel's scratch_bytes(), aligned to 64 bytes
};

/// All kernels are fastest with multiples of this many groups of outputs.
inline constexpr int GROUPS_TOGETHER = 2;

/// How weights of one type are multiplied with one set of instructions.
struct Kernel {
    /// Bytes of a batch's tokens as quantize() writes them, and bytes of scratch memory for a call.
    size_t (*tokens_bytes)(ggml_type weights, int64_t n_inputs, int64_t n_tokens) noexcept;
    size_t (*scratch_bytes)(int64_t n_tokens) noexcept;

    /// Quantises the activations `row` [n_inputs] of one of the batch's tokens into its place in `tokens`.
    void (*quantize)(ggml_type weights, const float * row, int64_t n_inputs, int64_t token, char * tokens) noexcept;

    /// nullptr if there is no kernel for this type
    void (*multiply)(const Operands & operands) noexcept;
};

/// Instruction sets that there are kernels for, each including those before it.
enum class Instructions { none, avx2, vnni, amx };

inline constexpr Instructions ALL_INSTRUCTIONS[] = {Instructions::none, Instructions::avx2, Instructions::vnni,
                                                    Instructions::amx};

/// "none", "avx2", "vnni", "amx"
[[nodiscard]] std::string_view name_of(Instructions instructions) noexcept;

/// The instructions of that name; nullopt if there are none.
[[nodiscard]] std::optional<Instructions> instructions_of(std::string_view name) noexcept;

/// The last of these that the processor has. The first call asks Linux for permission to use AMX.
[[nodiscard]] Instructions best_instructions() noexcept;

/// The kernel for a weight type and a batch of `n_tokens` with these instructions, which the processor must have.
[[nodiscard]] Kernel kernel_for(ggml_type weights, int64_t n_tokens, Instructions instructions) noexcept;

// One for each instruction set. To be called only if the processor has it.
[[nodiscard]] Kernel avx2_kernel(ggml_type weights) noexcept;
[[nodiscard]] Kernel vnni_kernel(ggml_type weights) noexcept;
[[nodiscard]] Kernel amx_kernel(ggml_type weights) noexcept;

/// Asks Linux whether this process may use AMX.
[[nodiscard]] bool allow_amx() noexcept;

}  // namespace harp::kernels
