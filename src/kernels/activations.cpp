#include "kernels/activations.h"

#include <cstring>

#define GGML_COMMON_DECL_C
#include "ggml-common.h"
#include "kernels/cpu_back_end.h"
#include "kernels/packed_weights.h"

namespace harp::kernels {

namespace {

int sum_of(const int8_t * q, int n) {
    int sum = 0;
    for (int i = 0; i < n; ++i) sum += q[i];
    return sum;
}

/// @param constant  the weights are d * (q - constant)
void quantize_8_0(const float * row, int64_t n_blocks, int constant, ActivationBlock * to) {
    const ggml_from_float_t from_float = cpu_back_end().get_type_traits(GGML_TYPE_Q8_0)->from_float;
    for (int64_t i = 0; i < n_blocks; ++i) {
        block_q8_0 block;
        from_float(row + i * BLOCK, &block, BLOCK);
        std::memcpy(to[i].q, block.qs, BLOCK);
        to[i].d = ggml_fp16_to_fp32(block.d);
        to[i].sum = 0;
        to[i].start = BIAS_BITS - constant * sum_of(block.qs, BLOCK);
    }
}

void quantize_8_1(const float * row, int64_t n_blocks, ActivationBlock * to) {
    const ggml_from_float_t from_float = cpu_back_end().get_type_traits(GGML_TYPE_Q8_1)->from_float;
    for (int64_t i = 0; i < n_blocks; ++i) {
        block_q8_1 block;
        from_float(row + i * BLOCK, &block, BLOCK);
        std::memcpy(to[i].q, block.qs, BLOCK);
        to[i].d = ggml_fp16_to_fp32(block.d);
        // ggml multiplies with d * sum rounded to float16, so the sum is taken from that
        to[i].sum = to[i].d == 0 ? 0 : ggml_fp16_to_fp32(block.s) / to[i].d;
        to[i].start = BIAS_BITS;
    }
}

/// @param n_together how many of ggml's sums of 16 inputs are added to one
void quantize_k(const float * row, int64_t n_blocks, int n_together, ActivationSuperBlock * to) {
    const ggml_from_float_t from_float = cpu_back_end().get_type_traits(GGML_TYPE_Q8_K)->from_float;
    for (int64_t i = 0; i < n_blocks; ++i) {
        block_q8_K block;
        from_float(row + i * SUPER_BLOCK, &block, SUPER_BLOCK);
        std::memcpy(to[i].q, block.qs, SUPER_BLOCK);
        to[i].d = block.d;
        for (int j = 0; j < SUPER_BLOCK / 16 / n_together; ++j) {
            int sum = 0;
            for (int k = 0; k < n_together; ++k) sum += block.bsums[j * n_together + k];
            to[i].sums[j] = static_cast<int16_t>(sum);
        }
    }
}

}  // namespace

size_t token_bytes(ggml_type weights, int64_t n_inputs) noexcept {
    constexpr size_t LINE = 64;
    const auto n_blocks = static_cast<size_t>(n_inputs / ggml_blck_size(weights));
    const bool is_k = ggml_blck_size(weights) == SUPER_BLOCK;
    const size_t bytes = n_blocks * (is_k ? sizeof(ActivationSuperBlock) : sizeof(ActivationBlock));
    return (bytes + LINE - 1) / LINE * LINE;
}

void quantize(ggml_type weights, const float * row, int64_t n_inputs, void * token) noexcept {
    auto * blocks = static_cast<ActivationBlock *>(token);
    auto * super_blocks = static_cast<ActivationSuperBlock *>(token);
    const int64_t n_blocks = n_inputs / ggml_blck_size(weights);
    switch (weights) {
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_IQ4_NL:
        case GGML_TYPE_MXFP4: {
            const int constant = visit_packed(weights, []<class Packed>(Type<Packed>) { return Packed::CONSTANT; });
            return quantize_8_0(row, n_blocks, constant, blocks);
        }
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_1: return quantize_8_1(row, n_blocks, blocks);
        case GGML_TYPE_Q6_K: return quantize_k(row, n_blocks, 1, super_blocks);
        default: return quantize_k(row, n_blocks, 2, super_blocks);
    }
}

size_t tokens_bytes(ggml_type weights, int64_t n_inputs, int64_t n_tokens) noexcept {
    return static_cast<size_t>(n_tokens) * token_bytes(weights, n_inputs);
}

void quantize_token(ggml_type weights, const float * row, int64_t n_inputs, int64_t token, char * tokens) noexcept {
    quantize(weights, row, n_inputs, tokens + tokens_bytes(weights, n_inputs, token));
}

}  // namespace harp::kernels
