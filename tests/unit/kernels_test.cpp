// Our kernels on packed weights compared with ggml's dequantised weights multiplied in double: no worse than ggml's
// kernels.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <new>
#include <random>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "ggml-cpu.h"
#include "kernels/activations.h"
#include "kernels/multiply.h"
#include "kernels/packed_weights.h"

namespace harp::kernels {

Kernel emulated_vnni_kernel(ggml_type weights) noexcept;  // multiply_vnni.cpp with its instruction emulated in AVX2
Kernel emulated_amx_kernel(ggml_type weights) noexcept;   // multiply_amx.cpp with its tiles in C++

namespace {

/// Sets a block's exponent, for MXFP4.
void set_exponent(char * block, std::mt19937 & random) {
    *block = static_cast<char>(125 + random() % 4);
}

/// Where a block of a type has float16 numbers, and how many.
struct Halves {
    size_t at, n;
};

Halves halves(ggml_type type) {
    if (type == GGML_TYPE_Q6_K) return {ggml_type_size(type) - 2, 1};
    if (type == GGML_TYPE_MXFP4) return {0, 0};
    const bool has_one = type == GGML_TYPE_Q4_0 || type == GGML_TYPE_Q5_0 || type == GGML_TYPE_Q8_0 ||
                         type == GGML_TYPE_IQ4_NL || type == GGML_TYPE_IQ4_XS;
    return {0, has_one ? size_t{1} : size_t{2}};
}

/// Random weights of a type, in ggml's layout.
struct Matrix {
    ggml_type type;
    int64_t n_inputs, n_outputs;
    std::vector<char> rows;

    [[nodiscard]] const char * row(int64_t i) const {
        return rows.data() + static_cast<size_t>(i) * ggml_row_size(type, n_inputs);
    }
    [[nodiscard]] std::vector<float> dequantized(int64_t i) const {
        std::vector<float> values(static_cast<size_t>(n_inputs));
        ggml_get_type_traits(type)->to_float(row(i), values.data(), n_inputs);
        return values;
    }
};

using Values = std::function<float(std::mt19937 &)>;

std::vector<float> values(int64_t n, std::mt19937 & random, const Values & value) {
    std::vector<float> made(static_cast<size_t>(n));
    for (float & each : made) each = value(random);
    return made;
}

Matrix quantized(ggml_type type, int64_t n_inputs, int64_t n_outputs, std::mt19937 & random, const Values & value) {
    Matrix matrix{type, n_inputs, n_outputs, {}};
    matrix.rows.resize(static_cast<size_t>(n_outputs) * ggml_row_size(type, n_inputs));
    const std::vector<float> from = values(n_inputs * n_outputs, random, value);
    ggml_quantize_chunk(type, from.data(), matrix.rows.data(), 0, n_outputs, n_inputs, nullptr);
    return matrix;
}

/// Any bits, with finite scales: nibbles, scales and mins that no quantiser would choose.
Matrix any_bits(ggml_type type, int64_t n_inputs, int64_t n_outputs, std::mt19937 & random) {
    Matrix matrix{type, n_inputs, n_outputs, {}};
    matrix.rows.resize(static_cast<size_t>(n_outputs) * ggml_row_size(type, n_inputs));
    for (char & each : matrix.rows) each = static_cast<char>(random());
    const size_t block = ggml_type_size(type);
    std::uniform_real_distribution<float> scale(-2, 2);
    for (size_t at = 0; at < matrix.rows.size(); at += block) {
        if (type == GGML_TYPE_MXFP4) set_exponent(matrix.rows.data() + at, random);
        for (size_t i = 0; i < halves(type).n; ++i) {
            const ggml_fp16_t half = ggml_fp32_to_fp16(random() % 8 == 0 ? 0.0F : scale(random));
            std::memcpy(matrix.rows.data() + at + halves(type).at + 2 * i, &half, sizeof(half));
        }
    }
    return matrix;
}

/// All dot products by one of our kernels, [token][output].
std::vector<float> multiply(const Kernel & kernel, const Matrix & matrix, const std::vector<float> & activations,
                            int64_t n_tokens) {
    const int64_t n_groups = groups_of(matrix.n_outputs);
    const std::align_val_t line{64};
    std::vector<char> packed(static_cast<size_t>(n_groups) * group_bytes(matrix.type, matrix.n_inputs));
    pack(matrix.type, matrix.rows.data(), matrix.n_inputs, matrix.n_outputs, packed.data());

    // exactly the bytes asked for, so that a sanitizer notices accesses beyond
    const size_t tokens_bytes = kernel.tokens_bytes(matrix.type, matrix.n_inputs, n_tokens);
    const size_t scratch_bytes = kernel.scratch_bytes(n_tokens);
    auto * tokens = static_cast<char *>(::operator new(tokens_bytes, line));
    void * scratch = ::operator new(scratch_bytes, line);
    for (int64_t i = 0; i < n_tokens; ++i) {
        kernel.quantize(matrix.type, activations.data() + i * matrix.n_inputs, matrix.n_inputs, i, tokens);
    }
    std::vector<float> out(static_cast<size_t>(n_tokens * matrix.n_outputs), NAN);
    kernel.multiply({packed.data(), matrix.n_outputs, matrix.n_inputs, tokens, n_tokens, out.data(), matrix.n_outputs,
                     nullptr, scratch});
    ::operator delete(tokens, line);
    ::operator delete(scratch, line);
    return out;
}

/// One dot product by ggml: its kernel on its quantised activations.
float ggml_product(const Matrix & matrix, int64_t output, const float * token) {
    const ggml_type_traits_cpu & traits = *ggml_get_type_traits_cpu(matrix.type);
    std::vector<char> quantized(ggml_row_size(traits.vec_dot_type, matrix.n_inputs));
    ggml_get_type_traits_cpu(traits.vec_dot_type)->from_float(token, quantized.data(), matrix.n_inputs);
    float product = 0;
    traits.vec_dot(static_cast<int>(matrix.n_inputs), &product, 0, matrix.row(output), 0, quantized.data(), 0, 1);
    return product;
}

/// Root mean square of the differences from the exact dot products, for ours and ggml's.
struct Errors {
    double ours = 0, ggmls = 0;
    double magnitude = 0;   // of what is added before constants cancel: what rounding can change
    double sum = 0;         // of the products' absolute values
    double difference = 0;  // the largest between ours and ggml's, in units of magnitude
};

Errors errors(const Kernel & kernel, const Matrix & matrix, const std::vector<float> & tokens, int n_tokens) {
    const std::vector<float> ours = multiply(kernel, matrix, tokens, n_tokens);
    Errors of;
    for (int64_t output = 0; output < matrix.n_outputs; ++output) {
        const std::vector<float> weights = matrix.dequantized(output);
        for (int i = 0; i < n_tokens; ++i) {
            const float * token = tokens.data() + i * matrix.n_inputs;
            double exact = 0, largest = 0, activations = 0, sum = 0;
            for (size_t k = 0; k < weights.size(); ++k) {
                const double product = static_cast<double>(weights[k]) * token[k];
                exact += product;
                sum += std::abs(product);
                largest = std::max(largest, std::abs(static_cast<double>(weights[k])));
                activations += std::abs(static_cast<double>(token[k]));
            }
            const double magnitude = 2 * largest * activations;
            const double mine = ours[static_cast<size_t>(i * matrix.n_outputs + output)];
            const double theirs = ggml_product(matrix, output, token);
            of.difference = std::max(of.difference, std::abs(mine - theirs) / (magnitude + 1e-24));
            of.ours += std::pow(mine - exact, 2);
            of.ggmls += std::pow(theirs - exact, 2);
            of.magnitude += std::pow(magnitude, 2);
            of.sum += std::pow(sum, 2);
        }
    }
    const auto n = static_cast<double>(matrix.n_outputs * n_tokens);
    for (double * squares : {&of.ours, &of.ggmls, &of.magnitude, &of.sum}) *squares = std::sqrt(*squares / n);
    return of;
}

/// The precision of a kernel's activations and unpacked weights.
enum class Precision { of_ggml, bfloat16 };

struct Implementation {
    std::string_view name;
    Kernel (*kernel_for)(ggml_type);
    Precision precision;
    bool (*is_here)();
};

bool has_avx2() {
    return ggml_cpu_has_avx2() && ggml_cpu_has_fma() && ggml_cpu_has_f16c();
}

const Implementation IMPLEMENTATIONS[] = {
    {"AVX2", [](ggml_type type) { return avx2_kernel(type); }, Precision::of_ggml, has_avx2},
    {"EmulatedVNNI", [](ggml_type type) { return emulated_vnni_kernel(type); }, Precision::of_ggml, has_avx2},
    {"VNNI", [](ggml_type type) { return vnni_kernel(type); }, Precision::of_ggml,
     [] { return best_instructions() >= Instructions::vnni; }},
    {"EmulatedAMX", [](ggml_type type) { return emulated_amx_kernel(type); }, Precision::bfloat16, has_avx2},
    {"AMX", [](ggml_type type) { return amx_kernel(type); }, Precision::bfloat16,
     [] { return best_instructions() >= Instructions::amx; }},
};

class Products : public ::testing::TestWithParam<std::tuple<ggml_type, Implementation>> {
  protected:
    void SetUp() override {
        ggml_cpu_init();
        if (!implementation().is_here()) GTEST_SKIP() << "not on this processor";
        kernel_ = implementation().kernel_for(type());
        ASSERT_NE(kernel_.multiply, nullptr);
    }
    [[nodiscard]] static ggml_type type() { return std::get<ggml_type>(GetParam()); }
    [[nodiscard]] static Implementation implementation() { return std::get<Implementation>(GetParam()); }

    /// With the same activations as ggml, expects the same sums. Otherwise no larger error than ggml's, or than 2^-8 of
    /// each product if all are rounded the same way.
    void expect_no_worse(const Matrix & matrix, const std::vector<float> & tokens, int n_tokens) const {
        const Errors found = errors(kernel_, matrix, tokens, n_tokens);
        const double of_order = 1e-7 * found.magnitude;
        if (implementation().precision == Precision::of_ggml) {
            EXPECT_LE(found.difference, 2e-6);
            EXPECT_LE(found.ours, 1.01 * found.ggmls + of_order);
        } else {
            EXPECT_LE(found.ours, std::max(found.ggmls, found.sum / 256) + of_order);
        }
    }

    Kernel kernel_{};
    std::mt19937 random_{7};
    std::normal_distribution<float> normal_{0, 1};
    Values gaussian_ = [this](std::mt19937 & random) { return normal_(random); };
};

TEST_P(Products, OfNumbersOfTokens) {
    for (const int n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 19, 28, 29, 32, 33, 70}) {
        SCOPED_TRACE(n);
        const Matrix matrix = quantized(type(), 1024, 24, random_, gaussian_);
        expect_no_worse(matrix, values(1024 * n, random_, gaussian_), n);
    }
}

/// Random values like a model's: no error may be larger than ggml's.
TEST_P(Products, AreAsExactAsGgmls) {
    const Matrix matrix = quantized(type(), 2048, 64, random_, gaussian_);
    const Errors found = errors(kernel_, matrix, values(2048 * 20, random_, gaussian_), 20);
    EXPECT_LE(found.ours, 1.01 * found.ggmls);
}

TEST_P(Products, OfOtherSizes) {
    for (const int64_t n_blocks : {1, 2, 3, 7, 18}) {
        for (const int64_t n_outputs : {8, 16, 24, 40, 72}) {
            SCOPED_TRACE(std::to_string(n_blocks) + " blocks, " + std::to_string(n_outputs) + " outputs");
            const int64_t n_inputs = n_blocks * ggml_blck_size(type());
            expect_no_worse(quantized(type(), n_inputs, n_outputs, random_, gaussian_),
                            values(3 * n_inputs, random_, gaussian_), 3);
        }
    }
}

TEST_P(Products, OfAnyBits) {
    for (int round = 0; round < 20; ++round) {
        SCOPED_TRACE(round);
        expect_no_worse(any_bits(type(), 512, 24, random_), values(2 * 512, random_, gaussian_), 2);
    }
}

/// All weights and activations at the ends of their ranges: int16 sums must not overflow.
TEST_P(Products, OfTheLargestSums) {
    for (const int sign : {-1, 1}) {
        Matrix matrix = any_bits(type(), 256, 24, random_);
        const bool is_signed = type() == GGML_TYPE_Q8_0;
        for (char & each : matrix.rows) each = static_cast<char>(is_signed ? 127 : -1);
        const size_t block = ggml_type_size(type());
        const ggml_fp16_t one = ggml_fp32_to_fp16(1);
        for (size_t at = 0; at < matrix.rows.size(); at += block) {
            if (type() == GGML_TYPE_MXFP4) set_exponent(matrix.rows.data() + at, random_);
            for (size_t i = 0; i < halves(type()).n; ++i) {
                std::memcpy(matrix.rows.data() + at + halves(type()).at + 2 * i, &one, sizeof(one));
            }
            // signed scales
            for (size_t i = 0; type() == GGML_TYPE_Q6_K && i < 16; ++i) matrix.rows[at + block - 18 + i] = 127;
        }
        const std::vector<float> tokens(256, static_cast<float>(sign) * 3.5F);
        expect_no_worse(matrix, tokens, 1);
    }
}

TEST_P(Products, OfExtremeValues) {
    const std::vector<std::pair<std::string, Values>> cases = {
        {"zeros", [](std::mt19937 &) { return 0.0F; }},
        {"one value", [](std::mt19937 &) { return 0.75F; }},
        {"large", [this](std::mt19937 & random) { return 1000 * normal_(random); }},
        {"small", [this](std::mt19937 & random) { return 1e-3F * normal_(random); }},
        {"outliers", [this](std::mt19937 & random) { return random() % 50 ? normal_(random) : 300 * normal_(random); }},
        {"sparse", [this](std::mt19937 & random) { return random() % 20 ? 0.0F : normal_(random); }},
    };
    for (const auto & [name, value] : cases) {
        for (const auto & [other_name, other] : cases) {
            SCOPED_TRACE(name + " times " + other_name);
            expect_no_worse(quantized(type(), 512, 24, random_, value), values(2 * 512, random_, other), 2);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Types, Products,
                         ::testing::Combine(::testing::Values(GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0,
                                                              GGML_TYPE_Q5_1, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K,
                                                              GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL,
                                                              GGML_TYPE_IQ4_XS, GGML_TYPE_MXFP4),
                                            ::testing::ValuesIn(IMPLEMENTATIONS)),
                         [](const auto & tested) {
                             return std::string(ggml_type_name(std::get<ggml_type>(tested.param))) +
                                    std::string(std::get<Implementation>(tested.param).name);
                         });

TEST(PackedWeights, WhatCanBePacked) {
    EXPECT_TRUE(can_pack(GGML_TYPE_Q4_0, 32, 8));
    EXPECT_TRUE(can_pack(GGML_TYPE_Q6_K, 256, 8));
    EXPECT_FALSE(can_pack(GGML_TYPE_Q4_0, 32, 12));
    EXPECT_FALSE(can_pack(GGML_TYPE_Q4_0, 32, 0));
    EXPECT_FALSE(can_pack(GGML_TYPE_Q4_K, 128, 8));
    EXPECT_FALSE(can_pack(GGML_TYPE_Q2_K, 256, 8));
    EXPECT_FALSE(can_pack(GGML_TYPE_F32, 32, 8));
}

}  // namespace
}  // namespace harp::kernels
