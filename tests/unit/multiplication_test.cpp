// ggml's operations on its CPU back end, with weights in our buffer type, compared with dequantised weights multiplied
// in double: which row is multiplied with which matrix, and where the result is stored.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "harp/kernels.h"
#include "support/ggml_operations.h"

namespace harp::kernels {

namespace {

using testing::normal_values;
using testing::our_buffer_type;

constexpr int64_t N_INPUTS = 512;
constexpr int64_t N_OUTPUTS = 72;  // not a multiple of what kernels process together

/// One operation: [N_OUTPUTS][N_INPUTS] weights of `n_experts`, activations, and the experts of each token.
class Operation {
  public:
    Operation(ggml_type type, int64_t n_experts, std::mt19937 & random) : type_(type), n_experts_(n_experts) {
        const std::vector<float> values = normal_values(N_INPUTS * N_OUTPUTS * n_experts, random);
        rows_.resize(static_cast<size_t>(N_OUTPUTS * n_experts) * ggml_row_size(type, N_INPUTS));
        ggml_quantize_chunk(type, values.data(), rows_.data(), 0, N_OUTPUTS * n_experts, N_INPUTS, nullptr);
        weights_.resize(values.size());
        ggml_get_type_traits(type)->to_float(rows_.data(), weights_.data(), static_cast<int64_t>(values.size()));
    }

    /// @param n_rows  rows of activations for each token, or 1 that its experts share
    void set_activations(int64_t n_rows, int64_t n_tokens, std::mt19937 & random) {
        n_rows_ = n_rows;
        n_tokens_ = n_tokens;
        activations_ = normal_values(N_INPUTS * n_rows * n_tokens, random);
    }

    /// [n_tokens][n_used]
    void set_experts(std::vector<int32_t> experts) { experts_ = std::move(experts); }

    /// The result by ggml, with the weights in our buffer type: [n_tokens][n_used][N_OUTPUTS].
    [[nodiscard]] std::vector<float> run(int n_threads) const {
        const ggml_backend_ptr backend = testing::cpu_with_threads(n_threads);
        const ggml_context_ptr of_weights = testing::tensors_without_data(), context = testing::tensors_without_data();
        ggml_tensor * weights = ggml_new_tensor_3d(of_weights.get(), type_, N_INPUTS, N_OUTPUTS, n_experts_);
        const ggml_backend_buffer_ptr weights_buffer(
            ggml_backend_alloc_ctx_tensors_from_buft(of_weights.get(), our_buffer_type()));
        ggml_backend_tensor_set(weights, rows_.data(), 0, rows_.size());

        ggml_tensor * activations = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, N_INPUTS, n_rows_, n_tokens_);
        ggml_tensor * ids = nullptr;
        ggml_tensor * result = nullptr;
        if (experts_.empty()) {
            result = ggml_mul_mat(context.get(), weights, activations);
        } else {
            ids = ggml_new_tensor_2d(context.get(), GGML_TYPE_I32, n_used(), n_tokens_);
            result = ggml_mul_mat_id(context.get(), weights, activations, ids);
        }
        const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(context.get(), backend.get()));
        ggml_backend_tensor_set(activations, activations_.data(), 0, activations_.size() * sizeof(float));
        if (ids != nullptr) ggml_backend_tensor_set(ids, experts_.data(), 0, experts_.size() * sizeof(int32_t));
        testing::compute(backend.get(), context.get(), result);
        return testing::values_of(result);
    }

    /// The largest difference of `result` from the exact one, in units of length of weights times length of
    /// activations.
    [[nodiscard]] double largest_error(const std::vector<float> & result) const {
        const int64_t n_results = experts_.empty() ? n_rows_ * n_tokens_ : n_used() * n_tokens_;
        EXPECT_EQ(result.size(), static_cast<size_t>(n_results * N_OUTPUTS));
        double largest = 0;
        for (int64_t row = 0; row < n_results; ++row) {
            const int64_t token = experts_.empty() ? row : row / n_used() * n_rows_ + row % n_used() % n_rows_;
            const int64_t expert = experts_.empty() ? 0 : experts_[static_cast<size_t>(row)];
            const float * activations = activations_.data() + token * N_INPUTS;
            for (int64_t output = 0; output < N_OUTPUTS; ++output) {
                const float * weights = weights_.data() + (expert * N_OUTPUTS + output) * N_INPUTS;
                const double exact = std::inner_product(weights, weights + N_INPUTS, activations, 0.0);
                const double length =
                    std::sqrt(std::inner_product(weights, weights + N_INPUTS, weights, 0.0) *
                              std::inner_product(activations, activations + N_INPUTS, activations, 0.0));
                largest =
                    std::max(largest, std::abs(result[static_cast<size_t>(row * N_OUTPUTS + output)] - exact) / length);
            }
        }
        return largest;
    }

  private:
    [[nodiscard]] int64_t n_used() const { return static_cast<int64_t>(experts_.size()) / n_tokens_; }

    ggml_type type_;
    int64_t n_experts_, n_rows_ = 1, n_tokens_ = 1;
    std::vector<char> rows_;
    std::vector<float> weights_, activations_;
    std::vector<int32_t> experts_;
};

/// Activations in 8 bits cause a smaller error than this; a wrong row or place causes a much larger one.
constexpr double TOLERANCE = 0.003;

class Operations : public ::testing::TestWithParam<std::tuple<ggml_type, const char *>> {
  protected:
    void SetUp() override {
        if (our_buffer_type() == nullptr) GTEST_SKIP() << "no kernels of ours for this processor";
        if (!harp_set_kernel_instructions(std::get<const char *>(GetParam()))) GTEST_SKIP() << "not on this processor";
    }
    void TearDown() override { harp_set_kernel_instructions(best_); }

    void expect_exact(const Operation & operation) const {
        const std::vector<float> result = operation.run(1);
        EXPECT_LT(operation.largest_error(result), TOLERANCE);
        for (const int n_threads : {2, 3}) EXPECT_EQ(operation.run(n_threads), result) << n_threads << " threads";
    }

    [[nodiscard]] static ggml_type type() { return std::get<ggml_type>(GetParam()); }

    const char * best_ = harp_kernel_instructions();
    std::mt19937 random_{11};
};

TEST_P(Operations, OneMatrix) {
    Operation operation(type(), 1, random_);
    for (const auto & [n_rows, n_tokens] : {std::pair{1, 1}, {3, 1}, {12, 1}, {20, 1}, {5, 7}, {10, 7}}) {
        SCOPED_TRACE(std::to_string(n_rows) + " by " + std::to_string(n_tokens));
        operation.set_activations(n_rows, n_tokens, random_);
        expect_exact(operation);
    }
}

/// Each token goes to two of six experts. Experts get no, few or many tokens, for which kernels may differ.
TEST_P(Operations, ExpertsOfTokens) {
    Operation operation(type(), 6, random_);
    for (const int n_tokens : {1, 2, 9, 40, 110}) {
        for (const int n_rows : {1, 2}) {  // the same or different activations for both experts
            for (const bool is_skewed : {false, true}) {
                SCOPED_TRACE(std::to_string(n_tokens) + " tokens, " + std::to_string(n_rows) + " rows" +
                             (is_skewed ? ", mostly one expert" : ""));
                std::vector<int32_t> experts;
                for (int token = 0; token < n_tokens; ++token) {
                    const auto first = is_skewed && token % 5 != 0 ? 4U : random_() % 6;
                    const auto second = (first + 1 + random_() % 5) % 6;
                    experts.insert(experts.end(), {static_cast<int32_t>(first), static_cast<int32_t>(second)});
                }
                operation.set_activations(n_rows, n_tokens, random_);
                operation.set_experts(experts);
                expect_exact(operation);
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Types, Operations,
                         ::testing::Combine(::testing::Values(GGML_TYPE_Q4_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0,
                                                              GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_XS,
                                                              GGML_TYPE_MXFP4),
                                            ::testing::Values("avx2", "vnni", "amx")),
                         [](const auto & tested) {
                             return std::string(ggml_type_name(std::get<ggml_type>(tested.param))) +
                                    std::get<const char *>(tested.param);
                         });

}  // namespace
}  // namespace harp::kernels
