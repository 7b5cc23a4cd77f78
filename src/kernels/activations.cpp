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

/// Pointers to the parts of a token that is being written.
struct Parts {
    int8_t * q;
    float * d;
    float * sums;
    int32_t * centres;
    int16_t * short_sums;
};

/// @param constant  the weights are d * (q - constant)
void quantize_8_0(const float * row, int64_t n_blocks, int constant, const Parts & to) {
    const ggml_from_float_t from_float = cpu_back_end().get_type_traits(GGML_TYPE_Q8_0)->from_float;
    for (int64_t i = 0; i < n_blocks; ++i) {
        block_q8_0 block;
        from_float(row + i * BLOCK, &block, BLOCK);
        std::memcpy(to.q + i * BLOCK, block.qs, BLOCK);
        to.d[i] = ggml_fp16_to_fp32(block.d);
        to.centres[i] = -constant * sum_of(block.qs, BLOCK);
    }
}

void quantize_8_1(const float * row, int64_t n_blocks, const Parts & to) {
    const ggml_from_float_t from_float = cpu_back_end().get_type_traits(GGML_TYPE_Q8_1)->from_float;
    for (int64_t i = 0; i < n_blocks; ++i) {
        block_q8_1 block;
        from_float(row + i * BLOCK, &block, BLOCK);
        std::memcpy(to.q + i * BLOCK, block.qs, BLOCK);
        to.d[i] = ggml_fp16_to_fp32(block.d);
        // ggml multiplies with d * sum rounded to float16, so the sum is taken from that
        to.sums[i] = to.d[i] == 0 ? 0 : ggml_fp16_to_fp32(block.s) / to.d[i];
    }
}

/// @param n_together how many of ggml's sums of 16 inputs are added to one
void quantize_k(const float * row, int64_t n_blocks, int n_together, const Parts & to) {
    const ggml_from_float_t from_float = cpu_back_end().get_type_traits(GGML_TYPE_Q8_K)->from_float;
    int64_t n_sums = 0;
    for (int64_t i = 0; i < n_blocks; ++i) {
        block_q8_K block;
        from_float(row + i * SUPER_BLOCK, &block, SUPER_BLOCK);
        std::memcpy(to.q + i * SUPER_BLOCK, block.qs, SUPER_BLOCK);
        to.d[i] = block.d;
        for (int j = 0; j < SUPER_BLOCK / 16; j += n_together) {
            int sum = 0;
            for (int k = 0; k < n_together; ++k) sum += block.bsums[j + k];
            to.sums[n_sums] = static_cast<float>(sum);
            to.short_sums[n_sums++] = static_cast<int16_t>(sum);
        }
    }
}

}  // namespace

TokenLayout token_layout(ggml_type weights, int64_t n_inputs) noexcept {
    const auto n = static_cast<size_t>(n_inputs);
    const auto n_sums = n / (weights == GGML_TYPE_Q6_K ? 16 : BLOCK);
    TokenLayout layout{};
    layout.scales = n;
    layout.sums = layout.scales + n / static_cast<size_t>(ggml_blck_size(weights)) * sizeof(float);
    layout.short_sums = layout.sums + n_sums * sizeof(float);
    layout.bytes = layout.short_sums + (ggml_blck_size(weights) == SUPER_BLOCK ? n_sums * sizeof(int16_t) : 0);
    layout.bytes = (layout.bytes + 63) / 64 * 64;
    return layout;
}

void quantize(ggml_type weights, const float * row, int64_t n_inputs, void * token) noexcept {
    const TokenLayout layout = token_layout(weights, n_inputs);
    auto * bytes = static_cast<char *>(token);
    const Parts to{reinterpret_cast<int8_t *>(bytes), reinterpret_cast<float *>(bytes + layout.scales),
                   reinterpret_cast<float *>(bytes + layout.sums), reinterpret_cast<int32_t *>(bytes + layout.sums),
                   reinterpret_cast<int16_t *>(bytes + layout.short_sums)};
    const int64_t n_blocks = n_inputs / ggml_blck_size(weights);
    switch (weights) {
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_IQ4_NL:
        case GGML_TYPE_MXFP4:
            return quantize_8_0(row, n_blocks,
                                visit_packed(weights, []<class Packed>(Type<Packed>) { return Packed::CONSTANT; }), to);
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_1: return quantize_8_1(row, n_blocks, to);
        case GGML_TYPE_Q6_K: return quantize_k(row, n_blocks, 1, to);
        default: return quantize_k(row, n_blocks, 2, to);
    }
}

size_t tokens_bytes(ggml_type weights, int64_t n_inputs, int64_t n_tokens) noexcept {
    return static_cast<size_t>(n_tokens) * token_layout(weights, n_inputs).bytes;
}

void quantize_token(ggml_type weights, const float * row, int64_t n_inputs, int64_t token, char * tokens) noexcept {
    quantize(weights, row, n_inputs, tokens + tokens_bytes(weights, n_inputs, token));
}

}  // namespace harp::kernels
