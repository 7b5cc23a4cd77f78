#include "kernels/activations.h"

#include "kernels/packed_weights.h"

namespace harp::kernels {

size_t token_bytes(ggml_type weights, int64_t n_inputs) noexcept {
    constexpr size_t LINE = 64;
    const auto n_blocks = static_cast<size_t>(n_inputs / ggml_blck_size(weights));
    const bool is_k = ggml_blck_size(weights) == SUPER_BLOCK;
    const size_t bytes = n_blocks * (is_k ? sizeof(ActivationSuperBlock) : sizeof(ActivationBlock));
    return (bytes + LINE - 1) / LINE * LINE;
}

size_t tokens_bytes(ggml_type weights, int64_t n_inputs, int64_t n_tokens) noexcept {
    return static_cast<size_t>(n_tokens) * token_bytes(weights, n_inputs);
}

}  // namespace harp::kernels
