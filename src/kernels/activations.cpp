#include "kernels/activations.h"

#include "kernels/packed_weights.h"
#include "kernels/work_memory.h"

namespace harp::kernels {

size_t token_bytes(ggml_type weights, int64_t n_inputs) noexcept {
    const auto n_blocks = static_cast<size_t>(n_inputs / ggml_blck_size(weights));
    const bool is_k = ggml_blck_size(weights) == SUPER_BLOCK;
    return whole_lines(n_blocks * (is_k ? sizeof(ActivationSuperBlock) : sizeof(ActivationBlock)));
}

size_t tokens_bytes(ggml_type weights, int64_t n_inputs, int64_t n_tokens) noexcept {
    return static_cast<size_t>(n_tokens) * token_bytes(weights, n_inputs);
}

}  // namespace harp::kernels
