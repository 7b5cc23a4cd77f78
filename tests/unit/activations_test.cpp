// Our quantisation of activations compared with ggml's.
#include "kernels/activations.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "ggml-cpu.h"
#define GGML_COMMON_DECL_C
#include "ggml-common.h"
#include "kernels/packed_weights.h"

namespace harp::kernels {

namespace {

class Quantisation : public ::testing::TestWithParam<ggml_type> {};

/// Compares with ggml's blocks of a type, which have the same names for the same things.
template <class Block>
void expect_same(const ActivationBlock & ours, const Block & ggmls) {
    EXPECT_EQ(std::memcmp(ours.q, ggmls.qs, sizeof(ours.q)), 0);
    EXPECT_EQ(ours.d, ggml_fp16_to_fp32(ggmls.d));
    if constexpr (std::is_same_v<Block, block_q8_1>) {
        EXPECT_FLOAT_EQ(ours.sum * ours.d, ggml_fp16_to_fp32(ggmls.s));
    }
}

/// Activations have the values that ggml's own functions give them, bit for bit.
TEST_P(Quantisation, IsGgmls) {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) GTEST_SKIP() << "no AVX2";
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    const std::vector<std::function<float(int)>> cases = {
        [&](int) { return normal(random); },
        [](int) { return 0.0F; },
        [](int i) { return i % 2 == 0 ? 2.5F : -2.5F; },  // the first of several greatest values gives the sign
        [](int i) { return i == 77    ? -3.0F
                           : i == 201 ? 3.0F
                                      : 0.01F * static_cast<float>(i % 7); },
        [](int i) { return static_cast<float>(i - 128) / 127 * 1.5F; },  // halves between two integers
        [&](int) { return 1e-30F * normal(random); },
        [&](int) { return 1e5F * normal(random); },
    };
    for (size_t c = 0; c < cases.size(); ++c) {
        SCOPED_TRACE(c);
        std::vector<float> row(3 * SUPER_BLOCK);
        for (size_t i = 0; i < row.size(); ++i) row[i] = cases[c](static_cast<int>(i % SUPER_BLOCK));
        const auto n = static_cast<int64_t>(row.size());
        std::vector<char> ours(token_bytes(GetParam(), n));
        quantize(GetParam(), row.data(), n, ours.data());
        const ggml_type of_ggml = ggml_get_type_traits_cpu(GetParam())->vec_dot_type;
        std::vector<char> ggmls(ggml_row_size(of_ggml, n));
        ggml_get_type_traits_cpu(of_ggml)->from_float(row.data(), ggmls.data(), n);
        if (of_ggml == GGML_TYPE_Q8_K) {
            for (int i = 0; i < 3; ++i) {
                const auto & block = reinterpret_cast<const ActivationSuperBlock *>(ours.data())[i];
                const auto & expected = reinterpret_cast<const block_q8_K *>(ggmls.data())[i];
                EXPECT_EQ(std::memcmp(block.q, expected.qs, sizeof(block.q)), 0);
                EXPECT_EQ(block.d, expected.d);
                if (block.d == 0) continue;  // ggml leaves the sums as they were
                for (int k = 0; k < 16; ++k) {
                    const bool each = GetParam() == GGML_TYPE_Q6_K;
                    if (!each && k % 2 != 0) continue;
                    EXPECT_EQ(block.sums[each ? k : k / 2], expected.bsums[k] + (each ? 0 : expected.bsums[k + 1]));
                }
            }
            continue;
        }
        for (int64_t i = 0; i < n / BLOCK; ++i) {
            const auto & block = reinterpret_cast<const ActivationBlock *>(ours.data())[i];
            if (of_ggml == GGML_TYPE_Q8_1) {
                expect_same(block, reinterpret_cast<const block_q8_1 *>(ggmls.data())[i]);
            } else {
                expect_same(block, reinterpret_cast<const block_q8_0 *>(ggmls.data())[i]);
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Types, Quantisation,
                         ::testing::Values(GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K),
                         [](const auto & tested) { return std::string(ggml_type_name(tested.param)); });

}  // namespace

}  // namespace harp::kernels
