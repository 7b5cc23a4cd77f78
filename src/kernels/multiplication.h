// ggml's matrix multiplications with packed weights: MUL_MAT, and MUL_MAT_ID of mixtures of experts.
#pragma once

#include "ggml-cpu.h"
#include "kernels/multiply.h"
#include "traits.h"

namespace harp::kernels {

/// Sets the instructions that multiplications use from now on; by default all that the processor has. Those that it
/// lacks are ignored. Packed weights are the same for all instructions.
void select(Instructions instructions) noexcept;
[[nodiscard]] Instructions selected_instructions() noexcept;

/// Whether `op` is one of these multiplications and its weights can be packed, on this processor.
[[nodiscard]] bool can_multiply(const ggml_tensor & op) noexcept;

/// Bytes of the packed weights; 0 if they cannot be packed.
[[nodiscard]] size_t packed_bytes(const ggml_tensor & weights) noexcept;

/// Work that ggml's threads share in an operation. First the batch's tokens are quantised, each by one thread. Then
/// free threads take chunks of outputs and multiply. In a mixture each expert's matrix is multiplied with that expert's
/// tokens.
class Multiplication final : public ggml::cpu::tensor_traits {
  public:
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override;
    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override;
};

}  // namespace harp::kernels
