// Micro-benchmarks of the method's pure functions: what HARP itself adds to a step besides the second pass.
#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "method/entropy.h"
#include "method/mixing.h"
#include "method/perturbation.h"

namespace {

using namespace harp;

std::vector<float> random_row(size_t n, float deviation) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0F, deviation);
    std::vector<float> row(n);
    for (float & x : row) x = normal(random);
    return row;
}

void count_items(benchmark::State & state) {
    state.SetItemsProcessed(state.iterations() * state.range(0));
}

void entropy(benchmark::State & state) {
    const auto logits = random_row(static_cast<size_t>(state.range(0)), 3.0F);
    for (auto _ : state) benchmark::DoNotOptimize(method::entropy_bits(logits));
    count_items(state);
}
BENCHMARK(entropy)->Arg(32000)->Arg(49152)->Arg(131072)->Arg(262144)->Unit(benchmark::kMicrosecond);

void perturb(benchmark::State & state, Perturbation kind) {
    const auto n_embd = static_cast<size_t>(state.range(0));
    std::vector<float> factors(n_embd), noise(n_embd), relative_noise(n_embd);
    uint32_t row = 0;
    for (auto _ : state) {
        method::perturb({.seed = 1}, row++, kind, 0.2F, {factors, noise, relative_noise});
        benchmark::ClobberMemory();
    }
    count_items(state);
}
BENCHMARK_CAPTURE(perturb, dropout, Perturbation::dropout)->Arg(576)->Arg(4096)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(perturb, uniform, Perturbation::uniform)->Arg(576)->Arg(4096)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(perturb, gaussian, Perturbation::gaussian)->Arg(576)->Arg(4096)->Unit(benchmark::kMicrosecond);

// In place, like the forward pass.
void mix(benchmark::State & state) {
    auto vanilla = random_row(static_cast<size_t>(state.range(0)), 3.0F);
    const auto reframed = vanilla;
    for (auto _ : state) {
        method::mix_logits(vanilla, reframed, {.beta = 0.5F}, vanilla);
        benchmark::ClobberMemory();
    }
    count_items(state);
}
BENCHMARK(mix)->Arg(131072)->Unit(benchmark::kMicrosecond);

}  // namespace

BENCHMARK_MAIN();
