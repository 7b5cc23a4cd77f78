// ggml's attention on its CPU back end, with queries from weights in our buffer type, compared with double precision.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
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
using testing::tensors_without_data;
using testing::values_of;

constexpr float INFINITE = std::numeric_limits<float>::infinity();

struct Shape {
    int64_t key_length = 64, value_length = 64;
    int64_t n_heads = 4, n_kv_heads = 2;
    int64_t n_tokens = 1, n_streams = 1, n_cells = 96;
    bool has_mask = true;
    float cap = 0;   // of the scores
    float bias = 0;  // greatest bias of ALiBi
    bool has_sinks = false;
    ggml_type cache = GGML_TYPE_F16;
};

std::string name_of(const Shape & s) {
    std::string name = "lengths " + std::to_string(s.key_length) + " and " + std::to_string(s.value_length) +
                       ", heads " + std::to_string(s.n_heads) + " on " + std::to_string(s.n_kv_heads) + ", tokens " +
                       std::to_string(s.n_tokens) + ", streams " + std::to_string(s.n_streams) + ", cells " +
                       std::to_string(s.n_cells);
    if (!s.has_mask) name += ", no mask";
    if (s.cap != 0) name += ", capped";
    if (s.bias != 0) name += ", ALiBi";
    if (s.has_sinks) name += ", sinks";
    return name + ", " + ggml_type_name(s.cache);
}

/// One operation and its inputs.
class AttentionOperation {
  public:
    AttentionOperation(const Shape & shape, std::mt19937 & random) : shape_(shape) {
        inputs_ = normal_values(N_INPUTS * shape.n_tokens * shape.n_streams, random);
        weights_ = normal_values(N_INPUTS * shape.n_heads * shape.key_length, random);
        keys_ = normal_values(shape.key_length * n_cached(), random);
        values_ = normal_values(shape.value_length * n_cached(), random);
        sinks_ = normal_values(shape.n_heads, random);
        mask_.assign(static_cast<size_t>(shape.n_cells * shape.n_tokens * shape.n_streams), 0.0F);
    }

    /// Sets what is added to the score of each cell for each token of a stream.
    void set_mask(const std::function<float(int64_t stream, int64_t token, int64_t cell)> & mask) {
        auto * next = mask_.data();
        for (int64_t stream = 0; stream < shape_.n_streams; ++stream) {
            for (int64_t token = 0; token < shape_.n_tokens; ++token) {
                for (int64_t cell = 0; cell < shape_.n_cells; ++cell) *next++ = mask(stream, token, cell);
            }
        }
    }

    /// Sets a cell's keys and values in all heads to a number.
    void set_cell(int64_t stream, int64_t cell, float number) {
        for (int64_t head = 0; head < shape_.n_kv_heads; ++head) {
            const int64_t row = (stream * shape_.n_cells + cell) * shape_.n_kv_heads + head;
            std::fill_n(keys_.begin() + row * shape_.key_length, shape_.key_length, number);
            std::fill_n(values_.begin() + row * shape_.value_length, shape_.value_length, number);
        }
    }

    /// The operation with only one of the tokens, which keeps its mask.
    [[nodiscard]] AttentionOperation with_token(int64_t token) const {
        AttentionOperation alone = *this;
        alone.shape_.n_tokens = 1;
        alone.inputs_.clear();
        alone.mask_.clear();
        for (int64_t stream = 0; stream < shape_.n_streams; ++stream) {
            const int64_t row = stream * shape_.n_tokens + token;
            alone.inputs_.insert(alone.inputs_.end(), inputs_.begin() + row * N_INPUTS,
                                 inputs_.begin() + (row + 1) * N_INPUTS);
            alone.mask_.insert(alone.mask_.end(), mask_.begin() + row * shape_.n_cells,
                               mask_.begin() + (row + 1) * shape_.n_cells);
        }
        return alone;
    }

    struct Result {
        std::vector<float> queries;  // [n_streams][n_tokens][n_heads][key_length]
        std::vector<float> out;      // [n_streams][n_tokens][n_heads][value_length]
    };

    /// @param weights  buffer type of the weights from which the queries are computed
    [[nodiscard]] Result run(int n_threads, ggml_backend_buffer_type_t weights) const {
        const ggml_backend_ptr backend = testing::cpu_with_threads(n_threads);
        const ggml_context_ptr of_weights = tensors_without_data(), context = tensors_without_data();
        ggml_context * c = context.get();
        const Shape & s = shape_;
        ggml_tensor * matrix = ggml_new_tensor_2d(of_weights.get(), TYPE, N_INPUTS, s.n_heads * s.key_length);
        const ggml_backend_buffer_ptr weights_buffer(
            ggml_backend_alloc_ctx_tensors_from_buft(of_weights.get(), weights));
        set(matrix, weights_);

        // laid out as in llama.cpp: cell by cell, with all heads of a cell together
        ggml_tensor * inputs = ggml_new_tensor_2d(c, GGML_TYPE_F32, N_INPUTS, s.n_tokens * s.n_streams);
        ggml_tensor * product = ggml_mul_mat(c, matrix, inputs);
        ggml_tensor * queries =
            ggml_permute(c, ggml_reshape_4d(c, product, s.key_length, s.n_heads, s.n_tokens, s.n_streams), 0, 2, 1, 3);
        ggml_tensor * keys = ggml_new_tensor_4d(c, s.cache, s.key_length, s.n_kv_heads, s.n_cells, s.n_streams);
        ggml_tensor * values = ggml_new_tensor_4d(c, s.cache, s.value_length, s.n_kv_heads, s.n_cells, s.n_streams);
        ggml_tensor * mask =
            s.has_mask ? ggml_new_tensor_4d(c, GGML_TYPE_F16, s.n_cells, s.n_tokens, 1, s.n_streams) : nullptr;
        ggml_tensor * sinks = s.has_sinks ? ggml_new_tensor_1d(c, GGML_TYPE_F32, s.n_heads) : nullptr;
        ggml_tensor * out = ggml_flash_attn_ext(c, queries, ggml_permute(c, keys, 0, 2, 1, 3),
                                                ggml_permute(c, values, 0, 2, 1, 3), mask, scale(), s.bias, s.cap);
        if (sinks != nullptr) ggml_flash_attn_ext_add_sinks(out, sinks);

        const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(c, backend.get()));
        set(inputs, inputs_);
        set(keys, keys_);
        set(values, values_);
        if (mask != nullptr) set(mask, mask_);
        if (sinks != nullptr) set(sinks, sinks_);
        testing::compute(backend.get(), c, out);
        return {values_of(product), values_of(out)};
    }

    /// The largest difference of a result from the exact one.
    [[nodiscard]] double largest_error(const Result & result) const {
        const Shape & s = shape_;
        const std::vector<float> keys = rounded(keys_, s.cache), values = rounded(values_, s.cache),
                                 mask = rounded(mask_, GGML_TYPE_F16);
        double largest = 0;
        for (int64_t row = 0; row < s.n_streams * s.n_tokens * s.n_heads; ++row) {
            const int64_t head = row % s.n_heads, stream = row / s.n_heads / s.n_tokens;
            const auto cached = [&](int64_t cell) {
                return (stream * s.n_cells + cell) * s.n_kv_heads + head / (s.n_heads / s.n_kv_heads);
            };
            std::vector<double> weights(static_cast<size_t>(s.n_cells));
            double maximum = s.has_sinks ? sinks_[static_cast<size_t>(head)] : -INFINITE;
            for (int64_t cell = 0; cell < s.n_cells; ++cell) {
                const auto slope = s.bias == 0 ? 1.0F : std::exp2(-s.bias * static_cast<float>(head + 1) / 4);
                const float added =
                    s.has_mask ? slope * mask[static_cast<size_t>(row / s.n_heads * s.n_cells + cell)] : 0;
                double score = 0;
                for (int64_t i = 0; i < s.key_length; ++i) {
                    score += double{result.queries[static_cast<size_t>(row * s.key_length + i)]} *
                             keys[static_cast<size_t>(cached(cell) * s.key_length + i)];
                }
                score *= scale();
                if (s.cap != 0) score = s.cap * std::tanh(score / s.cap);
                score = added == -INFINITE ? -INFINITE : score + added;
                weights[static_cast<size_t>(cell)] = score;
                maximum = std::max(maximum, score);
            }
            double sum = s.has_sinks ? std::exp(sinks_[static_cast<size_t>(head)] - maximum) : 0;
            for (double & weight : weights) {
                weight = weight == -INFINITE ? 0 : std::exp(weight - maximum);
                sum += weight;
            }
            for (int64_t i = 0; i < s.value_length; ++i) {
                double exact = 0;
                for (int64_t cell = 0; cell < s.n_cells; ++cell) {
                    const double weight = weights[static_cast<size_t>(cell)];
                    if (weight != 0)
                        exact += weight / sum * values[static_cast<size_t>(cached(cell) * s.value_length + i)];
                }
                const double error = std::abs(exact - result.out[static_cast<size_t>(row * s.value_length + i)]);
                largest = std::isnan(error) ? INFINITE : std::max(largest, error);
            }
        }
        return largest;
    }

  private:
    static constexpr int64_t N_INPUTS = 64;
    static constexpr ggml_type TYPE = GGML_TYPE_Q8_0;

    static void set(ggml_tensor * tensor, const std::vector<float> & values) {
        ASSERT_EQ(static_cast<size_t>(ggml_nelements(tensor)), values.size());
        std::vector<char> converted(ggml_nbytes(tensor));
        if (tensor->type == GGML_TYPE_F32) {
            std::memcpy(converted.data(), values.data(), converted.size());
        } else {
            ggml_quantize_chunk(tensor->type, values.data(), converted.data(), 0, ggml_nrows(tensor), tensor->ne[0],
                                nullptr);
        }
        ggml_backend_tensor_set(tensor, converted.data(), 0, converted.size());
    }
    /// Values as a tensor of that type holds them.
    static std::vector<float> rounded(const std::vector<float> & values, ggml_type type) {
        const auto n = static_cast<int64_t>(values.size());
        if (type == GGML_TYPE_F32) return values;
        std::vector<char> held(ggml_row_size(type, n));
        ggml_quantize_chunk(type, values.data(), held.data(), 0, 1, n, nullptr);
        std::vector<float> result(values.size());
        ggml_get_type_traits(type)->to_float(held.data(), result.data(), n);
        return result;
    }

    [[nodiscard]] int64_t n_cached() const { return shape_.n_kv_heads * shape_.n_cells * shape_.n_streams; }
    [[nodiscard]] float scale() const {
        return 0.25F / std::sqrt(static_cast<float>(shape_.key_length));  // queries are products, of length 8 or more
    }

    Shape shape_;
    std::vector<float> inputs_, weights_, keys_, values_, mask_, sinks_;
};

float causal(int64_t /*stream*/, int64_t token, int64_t cell) {
    return cell <= 20 + token ? 0.0F : -INFINITE;
}

/// What three tokens of a window see in a cache that others use too. One of them sees nothing.
float scattered(int64_t stream, int64_t token, int64_t cell) {
    if (token == 1) return -INFINITE;
    return (cell * 7 + stream) % 5 == token % 5 ? -0.125F * static_cast<float>(cell % 3) : -INFINITE;
}

/// Some tokens see neighbouring cells, others cells far apart.
float mixed(int64_t stream, int64_t token, int64_t cell) {
    return token % 2 == 0 ? causal(stream, token, cell) : scattered(stream, token - 1, cell);
}

/// Distances, which ALiBi multiplies with a head's slope.
float distances(int64_t /*stream*/, int64_t /*token*/, int64_t cell) {
    return cell <= 20 ? static_cast<float>(cell - 20) : -INFINITE;
}

TEST(KernelInstructions, OtherNamesAreRefused) {
    for (const char * name : {static_cast<const char *>(nullptr), "", "none", "sse2", "AVX2"})
        EXPECT_FALSE(harp_set_kernel_instructions(name)) << (name != nullptr ? name : "NULL");
}

class AttentionOf : public ::testing::TestWithParam<const char *> {
  protected:
    void SetUp() override {
        if (our_buffer_type() == nullptr) GTEST_SKIP() << "no kernels of ours for this processor";
        if (!harp_set_kernel_instructions(GetParam())) GTEST_SKIP() << "not on this processor";
    }
    void TearDown() override { harp_set_kernel_instructions(best_); }

    static AttentionOperation::Result by_ours(const AttentionOperation & operation, int n_threads = 2) {
        return operation.run(n_threads, our_buffer_type());
    }

    const char * best_ = harp_kernel_instructions();
    std::mt19937 random_{5};
};

constexpr double ATTENTION_TOLERANCE = 4e-6;

TEST_P(AttentionOf, IsExact) {
    const Shape shapes[] = {
        {},
        {.has_mask = false},
        {.n_cells = 1},
        {.n_cells = 33},
        {.n_heads = 14, .n_kv_heads = 2},  // Qwen2.5-0.5B
        {.n_heads = 9, .n_kv_heads = 3},   // SmolLM2
        {.n_heads = 3, .n_kv_heads = 3},   // each head has its own keys and values
        {.n_heads = 16, .n_kv_heads = 1},  // all heads share them
        {.key_length = 16, .value_length = 16},
        {.key_length = 80, .value_length = 80},
        {.key_length = 96, .value_length = 96},
        {.key_length = 128, .value_length = 128, .n_tokens = 3},
        {.key_length = 256, .value_length = 256, .n_kv_heads = 1},
        {.key_length = 192, .value_length = 128},
        {.n_tokens = 3, .n_streams = 3},
        {.n_tokens = 70, .n_cells = 128},  // several parts of rows
        {.n_heads = 14, .n_kv_heads = 2, .n_tokens = 19, .n_streams = 2},
        {.n_cells = 1300},  // several chunks, for threads to share
        {.n_heads = 32, .n_kv_heads = 16, .n_cells = 1300},
        {.n_heads = 3, .n_kv_heads = 1, .n_tokens = 2, .n_streams = 2, .n_cells = 1300},
        {.n_tokens = 3, .cap = 2},
        {.n_tokens = 3, .has_sinks = true},
        {.n_tokens = 2, .n_streams = 2, .n_cells = 1300, .cap = 0.5F, .has_sinks = true},
    };
    for (const Shape & shape : shapes) {
        SCOPED_TRACE(name_of(shape));
        AttentionOperation operation(shape, random_);
        for (const auto & mask : {causal, scattered, mixed}) {
            operation.set_mask(mask);
            const AttentionOperation::Result result = by_ours(operation);
            EXPECT_LT(operation.largest_error(result), ATTENTION_TOLERANCE);
            if (shape.n_cells > 1) {  // with one cell its value is the result
                EXPECT_NE(operation.run(2, ggml_backend_cpu_buffer_type()).out, result.out) << "ggml's, not ours";
            }
            for (const int n_threads : {1, 3, 8}) EXPECT_EQ(by_ours(operation, n_threads).out, result.out) << n_threads;
        }
    }
}

/// Cases that we leave to ggml. The result is right in any case.
TEST_P(AttentionOf, IsLeftToGgml) {
    for (const Shape & shape : {Shape{.bias = 8}, Shape{.cache = GGML_TYPE_F32}, Shape{.cache = GGML_TYPE_Q8_0},
                                Shape{.key_length = 40, .value_length = 40}}) {
        SCOPED_TRACE(name_of(shape));
        AttentionOperation operation(shape, random_);
        operation.set_mask(distances);
        EXPECT_LT(operation.largest_error(by_ours(operation)), 0.02);
    }
}

TEST_P(AttentionOf, ATokenDoesNotDependOnThoseBesideIt) {
    AttentionOperation all({.n_heads = 14, .n_tokens = 5, .n_streams = 2, .n_cells = 600}, random_);
    for (const auto & mask : {causal, scattered, mixed}) {
        all.set_mask(mask);
        const AttentionOperation::Result together = by_ours(all);
        for (int64_t token = 0; token < 5; ++token) {
            SCOPED_TRACE(token);
            const AttentionOperation::Result alone = by_ours(all.with_token(token));
            constexpr int64_t N = 14 * 64;
            for (int64_t stream = 0; stream < 2; ++stream) {
                const auto begin = together.out.begin() + (stream * 5 + token) * N;
                EXPECT_EQ(std::vector(begin, begin + N),
                          std::vector(alone.out.begin() + stream * N, alone.out.begin() + (stream + 1) * N));
            }
        }
    }
}

/// Cells that were freed keep their content.
TEST_P(AttentionOf, WhatIsNotSeenMayBeAnything) {
    const auto few = [](int64_t cell) { return cell < 100 && cell % 9 == 4; };
    const auto most = [](int64_t cell) { return cell < 100 && cell % 9 != 4; };
    AttentionOperation operation({.n_cells = 160}, random_);
    for (const std::function<bool(int64_t)> & is_seen :
         {std::function<bool(int64_t)>(few), std::function<bool(int64_t)>(most)}) {
        operation.set_mask([&](int64_t, int64_t, int64_t cell) { return is_seen(cell) ? 0 : -INFINITE; });
        AttentionOperation changed = operation;
        const std::vector<float> expected = by_ours(operation).out;
        for (const float number : {std::numeric_limits<float>::quiet_NaN(), INFINITE, 60000.0F}) {
            SCOPED_TRACE(number);
            for (int64_t cell = 0; cell < 160; ++cell) {
                if (!is_seen(cell)) changed.set_cell(0, cell, number);
            }
            EXPECT_EQ(by_ours(changed).out, expected);
        }
    }
}

/// Scores whose differences are too large for exp() in float.
TEST_P(AttentionOf, LargeScores) {
    AttentionOperation operation({.n_cells = 160}, random_);
    operation.set_mask(
        [](int64_t, int64_t, int64_t cell) { return static_cast<float>((cell * 37) % 160) * 40 - 3000; });
    EXPECT_LT(operation.largest_error(by_ours(operation)), 2e-4);
    operation.set_mask([](int64_t, int64_t, int64_t cell) { return cell == 77 ? 0.0F : -65504.0F; });
    EXPECT_LT(operation.largest_error(by_ours(operation)), ATTENTION_TOLERANCE);
}

INSTANTIATE_TEST_SUITE_P(Instructions, AttentionOf, ::testing::Values("avx2", "vnni"),
                         [](const auto & tested) { return std::string(tested.param); });

}  // namespace
}  // namespace harp::kernels
