// ggml's matrix multiplications with packed weights: MUL_MAT, and MUL_MAT_ID of mixtures of experts.
#pragma once

#include "ggml-cpu.h"
#include "kernels/multiply.h"
#include "traits.h"

namespace harp::kernels {

/// The instructions that multiplications use from now on, by default all that the processor has: packed weights are the same for
/// all. Those that it lacks are left out.
void select(Instructions instructions) noexcept;
[[nodiscard]] Instructions selected_instructions() noexcept;

/// Whether `op` is one of them and its weights can be packed, on this processor.
[[nodiscard]] bool can_multiply(const ggml_tensor & op) noexcept;

/// Bytes of packed weights; 0 for those that cannot be packed.
[[nodiscard]] size_t packed_bytes(const ggml_tensor & weights) noexcept;

/// What ggml's threads do together for an operation: the batch's tokens are quantised, each by one thread; then chunks of outputs are
/// multiplied by whoever is free. Of a mixture each expert's matrix is multiplied with its own tokens.
class Multiplication final : public ggml::cpu::tensor_traits {
  public:
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override;
    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override;
};

}  // namespace harp::kernels
