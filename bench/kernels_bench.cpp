// Our kernels on weights that stay in the cache, by format, instructions and number of tokens, in multiply-adds per
// second of all threads together. For comparison, the most that the processor's instructions allow with nothing to
// load: where memory is not the limit, arithmetic is. Compare within one run, with
// --benchmark_enable_random_interleaving=true.
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
constexpr int64_t N_GROUPS = 8;  // 144 KB of Q4_0; each thread has its own

/// A packed matrix and a batch's quantised tokens, with random values.
struct Problem {
    std::vector<char> weights;
    std::vector<char> tokens_memory, scratch_memory;
    char * tokens;  // in their memory, aligned to 64 bytes
    char * scratch;

    Problem(const Kernel & kernel, ggml_type type, int64_t n_tokens)
        : weights(static_cast<size_t>(N_GROUPS) * group_bytes(type, N_INPUTS)),
          tokens_memory(kernel.tokens_bytes(type, N_INPUTS, n_tokens) + LINE),
          scratch_memory(kernel.scratch_bytes(n_tokens) + LINE),
          tokens(aligned(tokens_memory)),
          scratch(aligned(scratch_memory)) {
        std::mt19937 random;
        std::normal_distribution<float> normal;
        std::vector<float> values(static_cast<size_t>(N_GROUPS * GROUP * N_INPUTS));
        for (float & value : values) value = normal(random);
        std::vector<char> rows(static_cast<size_t>(N_GROUPS * GROUP) * ggml_row_size(type, N_INPUTS));
        ggml_quantize_chunk(type, values.data(), rows.data(), 0, N_GROUPS * GROUP, N_INPUTS, nullptr);
        pack(type, rows.data(), N_INPUTS, N_GROUPS * GROUP, weights.data());
        for (int64_t i = 0; i < n_tokens; ++i) {
            kernel.quantize(type, values.data() + i % (N_GROUPS * GROUP) * N_INPUTS, N_INPUTS, i, tokens);
        }
    }

  private:
    static constexpr size_t LINE = 64;

    static char * aligned(std::vector<char> & memory) {
        return reinterpret_cast<char *>((reinterpret_cast<size_t>(memory.data()) + LINE - 1) / LINE * LINE);
    }
};

void multiply(benchmark::State & state, ggml_type type, Instructions instructions) {
    const int64_t n_tokens = state.range(0);
    const Kernel kernel = instructions == Instructions::amx ? amx_kernel(type)  // even for few tokens
                                                            : kernel_for(type, n_tokens, instructions);
    const Problem problem(kernel, type, n_tokens);
    std::vector<float> out(static_cast<size_t>(n_tokens * N_GROUPS * GROUP));
    for (auto _ : state) {
        kernel.multiply({problem.weights.data(), N_GROUPS * GROUP, N_INPUTS, problem.tokens, n_tokens, out.data(),
                         N_GROUPS * GROUP, nullptr, problem.scratch});
        benchmark::DoNotOptimize(out.data());
        benchmark::ClobberMemory();
    }
    state.SetItemsProcessed(state.iterations() * N_GROUPS * GROUP * N_INPUTS * n_tokens);
}

#if defined(__x86_64__)

constexpr int64_t BLOCKS = 1000;

/// Makes the compiler keep `value` in a register; DoNotOptimize would put it in memory.
#define NEEDED(value) asm volatile("" : "+v"(value))

/// Number of sums: those of a tile or, without the rest of the work, as many as keep the multipliers busy.
template <bool ALL_OF_IT>
constexpr size_t SUMS = ALL_OF_IT ? 5 : 12;

/// What is done with a block of Q4_0 after its steps: constant, conversion, scales and addition.
__attribute__((always_inline, target("avx2,fma"))) inline void add_block(__m256i product, __m256i constant,
                                                                         __m256 & scale, __m256 & total) {
    NEEDED(scale);
    const __m256 sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(product, constant));
    total = _mm256_fmadd_ps(sum, _mm256_mul_ps(scale, scale), total);
    NEEDED(total);
}

/// Steps of blocks of Q4_0 in registers, without loading or unpacking: 32 pairs of bytes are multiplied and neighbours
/// added. With ALL_OF_IT also the addition to the sum and, after eight steps, conversion, scales and addition.
template <bool ALL_OF_IT>
__attribute__((target("avx2,fma"))) void arithmetic_avx2() {
    __m256i sums[SUMS<ALL_OF_IT>] = {};
    __m256 totals[SUMS<ALL_OF_IT>] = {};
    __m256i bytes = _mm256_set1_epi8(1);
    __m256 scale = _mm256_set1_ps(0.5F);
    NEEDED(bytes);
    NEEDED(scale);
    for (int64_t i = 0; i < BLOCKS; ++i) {
#pragma GCC unroll 12
        for (int t = 0; t < STEPS; ++t) {
#pragma GCC unroll 12
            for (__m256i & sum : sums) {
                NEEDED(bytes);  // as if it had changed, so that no product is reused
                const __m256i product = _mm256_maddubs_epi16(ALL_OF_IT ? bytes : sum, bytes);
                sum = ALL_OF_IT ? _mm256_add_epi16(sum, product) : product;
                NEEDED(sum);
            }
        }
#pragma GCC unroll 12
        for (size_t n = 0; ALL_OF_IT && n < SUMS<ALL_OF_IT>; ++n) {
            add_block(_mm256_madd_epi16(sums[n], bytes), bytes, scale, totals[n]);
        }
    }
}

/// The same in registers of 512 bits, with an instruction that adds to the sum itself.
template <bool ALL_OF_IT>
__attribute__((target("avx512f,avx512vnni"))) void arithmetic_vnni() {
    __m512i sums[SUMS<false>] = {};
    __m512 totals[SUMS<false>] = {};
    __m512i bytes = _mm512_set1_epi8(1);
    __m512 scale = _mm512_set1_ps(0.5F);
    NEEDED(bytes);
    NEEDED(scale);
    for (int64_t i = 0; i < BLOCKS; ++i) {
#pragma GCC unroll 12
        for (int t = 0; t < STEPS; ++t) {
#pragma GCC unroll 12
            for (__m512i & sum : sums) {
                sum = _mm512_dpbusd_epi32(sum, bytes, bytes);
                NEEDED(sum);
            }
        }
#pragma GCC unroll 12
        for (size_t n = 0; ALL_OF_IT && n < SUMS<false>; ++n) {
            NEEDED(scale);
            __m512 part = _mm512_mul_ps(scale, scale);
            NEEDED(part);  // computed anew for each token's sums
            part = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[n]), scale, part);
            totals[n] = _mm512_fmadd_ps(part, scale, totals[n]);
            NEEDED(totals[n]);
        }
    }
}

template <bool ALL_OF_IT>
void in_registers(benchmark::State & state) {
    if (best_instructions() < Instructions::avx2) {
        state.SkipWithError("no AVX2");
        return;
    }
    const bool has_vnni = best_instructions() >= Instructions::vnni;
    for (auto _ : state) has_vnni ? arithmetic_vnni<ALL_OF_IT>() : arithmetic_avx2<ALL_OF_IT>();
    const size_t n_sums = has_vnni ? SUMS<false> : SUMS<ALL_OF_IT>;
    const int n_outputs = has_vnni ? 16 : 8;
    state.SetItemsProcessed(state.iterations() * BLOCKS * STEPS * static_cast<int64_t>(n_sums) * n_outputs * STEP);
    state.SetLabel(has_vnni ? "vnni" : "avx2");
}

/// Multiplications of tiles: 16 by 16 sums of 32 products, with four sums in turn.
void in_tiles(benchmark::State & state) {
    if (best_instructions() < Instructions::amx) {
        state.SkipWithError("no AMX");
        return;
    }
    struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
    } configuration;
    asm volatile("ldtilecfg %0" : : "m"(configuration));
    asm volatile("tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3" : :);
    asm volatile("tilezero %%tmm4\n tilezero %%tmm5" : :);
    for (auto _ : state) {
        for (int64_t i = 0; i < BLOCKS; ++i) {
            asm volatile("tdpbf16ps %%tmm5, %%tmm4, %%tmm0\n tdpbf16ps %%tmm5, %%tmm4, %%tmm1" : :);
            asm volatile("tdpbf16ps %%tmm5, %%tmm4, %%tmm2\n tdpbf16ps %%tmm5, %%tmm4, %%tmm3" : :);
        }
    }
    asm volatile("tilerelease" : :);
    state.SetItemsProcessed(state.iterations() * BLOCKS * 4 * 16 * 16 * 32);
    state.SetLabel("amx");
}

#endif

void on_all_threads(benchmark::internal::Benchmark * made) {
    made->Threads(static_cast<int>(std::max(1U, std::thread::hardware_concurrency())))->UseRealTime();
}

void register_all() {
    const Instructions best = best_instructions();
    for (const ggml_type type :
         {GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K,
          GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS, GGML_TYPE_MXFP4}) {
        for (const Instructions instructions : ALL_INSTRUCTIONS) {
            if (instructions == Instructions::none || instructions > best) continue;
            const std::string name = std::string(ggml_type_name(type)) + "/" + std::string(name_of(instructions));
            benchmark::internal::Benchmark * made = benchmark::RegisterBenchmark(
                name.c_str(), [=](benchmark::State & state) { multiply(state, type, instructions); });
            for (const int n_tokens : {1, 2, 3, 4, 6, 8, 12, 16, 32, 48, 64, 128, 256, 512}) made->Arg(n_tokens);
            on_all_threads(made);
        }
    }
}

}  // namespace

#if defined(__x86_64__)
BENCHMARK(in_registers<false>)->Name("registers/multiplications")->Apply(on_all_threads);
BENCHMARK(in_registers<true>)->Name("registers/all_of_Q4_0")->Apply(on_all_threads);
BENCHMARK(in_tiles)->Name("registers/tiles")->Apply(on_all_threads);
#endif

int main(int argc, char ** argv) {
    register_all();
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}
