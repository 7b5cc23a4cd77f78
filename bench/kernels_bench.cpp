// Products with weights that stay in the cache, by format and number of tokens, in multiply-adds a second of all threads together;
// and the most that the processor's multiplying instruction allows: where memory does not limit, arithmetic does.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/activations.h"
#include "kernels/multiply.h"
#include "kernels/packed_weights.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using namespace harp::kernels;

constexpr int64_t N_INPUTS = 2048;
constexpr int64_t N_GROUPS = 16;  // 144 KB of Q4_0, for each thread its own

/// A packed matrix and MAX_TOKENS quantised tokens, of random values.
struct Problem {
    std::vector<char> weights, tokens;

    explicit Problem(ggml_type type)
        : weights(static_cast<size_t>(N_GROUPS) * group_bytes(type, N_INPUTS)),
          tokens(MAX_TOKENS * token_bytes(type, N_INPUTS)) {
        std::mt19937 random;
        std::normal_distribution<float> normal;
        std::vector<float> values(static_cast<size_t>(N_GROUPS * GROUP * N_INPUTS));
        for (float & value : values) value = normal(random);
        std::vector<char> rows(static_cast<size_t>(N_GROUPS * GROUP) * ggml_row_size(type, N_INPUTS));
        ggml_quantize_chunk(type, values.data(), rows.data(), 0, N_GROUPS * GROUP, N_INPUTS, nullptr);
        pack(type, rows.data(), N_INPUTS, N_GROUPS * GROUP, weights.data());
        for (size_t i = 0; i < MAX_TOKENS; ++i) {
            quantize(type, values.data() + i * N_INPUTS, N_INPUTS, tokens.data() + i * token_bytes(type, N_INPUTS));
        }
    }
};

void product(benchmark::State & state, ggml_type type) {
    const Multiply multiply = multiply_for(type);
    if (multiply == nullptr) {
        state.SkipWithError("this processor has no products");
        return;
    }
    const int n_tokens = static_cast<int>(state.range(0));
    const Problem problem(type);
    std::vector<float> out(static_cast<size_t>(MAX_TOKENS * MAX_GROUPS * GROUP));
    Operands operands{nullptr, MAX_GROUPS, N_INPUTS, problem.tokens.data(), n_tokens, out.data(), MAX_GROUPS * GROUP};
    for (auto _ : state) {
        for (int64_t group = 0; group < N_GROUPS; group += MAX_GROUPS) {
            operands.groups = problem.weights.data() + static_cast<size_t>(group) * group_bytes(type, N_INPUTS);
            multiply(operands);
        }
        benchmark::DoNotOptimize(out.data());
        benchmark::ClobberMemory();
    }
    state.SetItemsProcessed(state.iterations() * N_GROUPS * GROUP * N_INPUTS * n_tokens);
}

#if defined(__x86_64__)

constexpr int SUMS = 8;
constexpr int64_t BLOCKS = 1000;

/// Says that `value` is needed, in a register: DoNotOptimize would take memory.
#define NEEDED(value) asm volatile("" : "+v"(value))

/// AVX2. A step of a block: 32 pairs of bytes multiplied, neighbours added; with `all_of_it` also the addition to the sum, and after
/// eight steps what a block of Q4_0 needs. Everything is in registers, nothing is loaded or unpacked.
__attribute__((target("avx2,fma"))) void multiply_bytes_avx2(bool all_of_it) {
    __m256i sums[SUMS] = {};
    __m256 totals[SUMS] = {};
    const __m256i bytes = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
    const __m256 scale = _mm256_set1_ps(0.5F);
    for (int64_t i = 0; i < BLOCKS; ++i) {
        for (int t = 0; t < STEPS; ++t) {
            for (__m256i & sum : sums) {
                const __m256i product = _mm256_maddubs_epi16(all_of_it ? bytes : sum, bytes);
                sum = all_of_it ? _mm256_add_epi16(sum, product) : product;
                NEEDED(sum);
            }
        }
        for (int n = 0; all_of_it && n < SUMS; ++n) {
            const __m256 sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_madd_epi16(sums[n], ones), bytes));
            totals[n] = _mm256_fmadd_ps(sum, _mm256_mul_ps(scale, scale), totals[n]);
            NEEDED(totals[n]);
        }
    }
}

/// AVX-512 VNNI, where the instruction adds to the sum by itself.
__attribute__((target("avx2,fma,avx512vl,avx512vnni"))) void multiply_bytes_vnni(bool all_of_it) {
    __m256i sums[SUMS] = {};
    __m256 totals[SUMS] = {};
    const __m256i bytes = _mm256_set1_epi8(1);
    const __m256 scale = _mm256_set1_ps(0.5F);
    for (int64_t i = 0; i < BLOCKS; ++i) {
        for (int t = 0; t < STEPS; ++t) {
            for (__m256i & sum : sums) {
                sum = _mm256_dpbusd_epi32(sum, bytes, bytes);
                NEEDED(sum);
            }
        }
        for (int n = 0; all_of_it && n < SUMS; ++n) {
            const __m256 sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(sums[n], bytes));
            totals[n] = _mm256_fmadd_ps(sum, _mm256_mul_ps(scale, scale), totals[n]);
            NEEDED(totals[n]);
        }
    }
}

void in_registers(benchmark::State & state, bool all_of_it) {
    const bool has_vnni = instructions() == "AVX-512 VNNI";
    if (instructions() == "none") {
        state.SkipWithError("this processor has no products");
        return;
    }
    for (auto _ : state) has_vnni ? multiply_bytes_vnni(all_of_it) : multiply_bytes_avx2(all_of_it);
    state.SetItemsProcessed(state.iterations() * BLOCKS * STEPS * SUMS * GROUP * STEP);
    state.SetLabel(std::string(instructions()));
}

#endif

void all_threads(benchmark::internal::Benchmark * made) {
    made->Threads(static_cast<int>(std::max(1U, std::thread::hardware_concurrency())))->UseRealTime();
}

void some_tokens(benchmark::internal::Benchmark * made) {
    for (const int n_tokens : {1, 2, 3, 4, 6, 8}) made->Arg(n_tokens);
    all_threads(made);
}

}  // namespace

#if defined(__x86_64__)
BENCHMARK_CAPTURE(in_registers, multiplications, false)->Apply(all_threads);
BENCHMARK_CAPTURE(in_registers, all_arithmetic_of_Q4_0, true)->Apply(all_threads);
#endif
BENCHMARK_CAPTURE(product, Q4_0, GGML_TYPE_Q4_0)->Apply(some_tokens);
BENCHMARK_CAPTURE(product, Q4_1, GGML_TYPE_Q4_1)->Apply(some_tokens);
BENCHMARK_CAPTURE(product, Q5_0, GGML_TYPE_Q5_0)->Apply(some_tokens);
BENCHMARK_CAPTURE(product, Q5_1, GGML_TYPE_Q5_1)->Apply(some_tokens);
BENCHMARK_CAPTURE(product, Q8_0, GGML_TYPE_Q8_0)->Apply(some_tokens);
BENCHMARK_CAPTURE(product, Q4_K, GGML_TYPE_Q4_K)->Apply(some_tokens);
BENCHMARK_CAPTURE(product, Q5_K, GGML_TYPE_Q5_K)->Apply(some_tokens);
BENCHMARK_CAPTURE(product, Q6_K, GGML_TYPE_Q6_K)->Apply(some_tokens);

BENCHMARK_MAIN();
