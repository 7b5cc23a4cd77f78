// Matrix multiplications on ggml's AMX path compared with the same weights multiplied in double. Without
// patches/amx-tile-configuration.patch the first of them is an illegal instruction if compiled by GCC 12.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "support/ggml_operations.h"

namespace harp::testing {
namespace {

constexpr int64_t N_INPUTS = 512, N_OUTPUTS = 96;  // three blocks of outputs, so that each of two threads has some

class Amx : public ::testing::TestWithParam<ggml_type> {
  protected:
    void SetUp() override {
        ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);  // it logs each tensor
        amx_ = extra_buffer_type("AMX");  // multiplications with weights in it take the AMX path
        if (amx_ == nullptr) GTEST_SKIP() << "no AMX on this processor, or not in this build";
        const std::vector<float> exact = normal_values(N_INPUTS * N_OUTPUTS, random_);
        quantized_.resize(static_cast<size_t>(N_OUTPUTS) * ggml_row_size(GetParam(), N_INPUTS));
        ggml_quantize_chunk(GetParam(), exact.data(), quantized_.data(), 0, N_OUTPUTS, N_INPUTS, nullptr);
    }

    /// [n_tokens][N_OUTPUTS], computed by ggml from weights in the AMX buffer type.
    [[nodiscard]] std::vector<float> products(const std::vector<float> & tokens, int64_t n_tokens,
                                              int n_threads) const {
        const ggml_backend_ptr cpu = cpu_with_threads(n_threads);
        const ggml_context_ptr of_weights = tensors_without_data(), of_rest = tensors_without_data();
        ggml_tensor * weights = ggml_new_tensor_2d(of_weights.get(), GetParam(), N_INPUTS, N_OUTPUTS);
        ggml_tensor * input = ggml_new_tensor_2d(of_rest.get(), GGML_TYPE_F32, N_INPUTS, n_tokens);
        const ggml_backend_buffer_ptr weight_buffer(ggml_backend_alloc_ctx_tensors_from_buft(of_weights.get(), amx_));
        ggml_tensor * product = ggml_mul_mat(of_rest.get(), weights, input);
        EXPECT_TRUE(ggml_backend_supports_op(cpu.get(), product));
        const ggml_backend_buffer_ptr rest_buffer(ggml_backend_alloc_ctx_tensors(of_rest.get(), cpu.get()));
        ggml_backend_tensor_set(weights, quantized_.data(), 0, quantized_.size());
        ggml_backend_tensor_set(input, tokens.data(), 0, tokens.size() * sizeof(float));

        compute(cpu.get(), of_rest.get(), product);
        return values_of(product);
    }

    /// Root mean square of the differences from dot products in double, relative to that of the dot products.
    [[nodiscard]] double relative_error(const std::vector<float> & found, const std::vector<float> & tokens,
                                        int64_t n_tokens) const {
        std::vector<float> weights(static_cast<size_t>(N_INPUTS * N_OUTPUTS));
        ggml_get_type_traits(GetParam())->to_float(quantized_.data(), weights.data(), N_INPUTS * N_OUTPUTS);
        double of_errors = 0, of_products = 0;
        for (int64_t i = 0; i < n_tokens; ++i) {
            for (int64_t output = 0; output < N_OUTPUTS; ++output) {
                double exact = 0;
                for (int64_t k = 0; k < N_INPUTS; ++k) {
                    exact += static_cast<double>(weights[static_cast<size_t>(output * N_INPUTS + k)]) *
                             tokens[static_cast<size_t>(i * N_INPUTS + k)];
                }
                of_errors += std::pow(found[static_cast<size_t>(i * N_OUTPUTS + output)] - exact, 2);
                of_products += exact * exact;
            }
        }
        return std::sqrt(of_errors / of_products);
    }

    std::mt19937 random_{7};
    ggml_backend_buffer_type_t amx_ = nullptr;
    std::vector<char> quantized_;  // N_OUTPUTS rows of N_INPUTS weights
};

/// One token does not use the tiles; from two on they are used, 32 tokens at a time.
TEST_P(Amx, ProductsAreTheWeightsTimesTheTokens) {
    for (const int n_threads : {1, 2}) {
        for (const int64_t n_tokens : {1, 2, 5, 16, 17, 32, 33, 70}) {
            SCOPED_TRACE(std::to_string(n_tokens) + " tokens, " + std::to_string(n_threads) + " threads");
            const std::vector<float> tokens = normal_values(N_INPUTS * n_tokens, random_);
            // the tokens are rounded to 8 bits, to about a hundredth of their size
            EXPECT_LE(relative_error(products(tokens, n_tokens, n_threads), tokens, n_tokens), 0.02);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Types, Amx,
                         ::testing::Values(GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K,
                                           GGML_TYPE_Q5_K, GGML_TYPE_Q6_K),
                         [](const auto & tested) { return std::string(ggml_type_name(tested.param)); });

}  // namespace
}  // namespace harp::testing
