// Random choices for tests that replay what they chose.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <string>
#include <utility>

#include "support/models.h"

namespace harp::testing {

/// The same on each machine, unlike the standard distributions.
class Random {
  public:
    explicit Random(unsigned seed) : engine_(seed) {}
    /// 0 .. n - 1, or 0
    int below(int n) { return static_cast<int>(engine_() % static_cast<unsigned>(std::max(1, n))); }
    bool chance(int percent) { return below(100) < percent; }
    template <typename T>
    T of(std::initializer_list<T> values) {
        return *(values.begin() + below(static_cast<int>(values.size())));
    }

  private:
    std::mt19937 engine_;
};

/// Parameters of a context for `n_sequences`, of `n_ctx_each` tokens each, with batches of any size.
inline llama_context_params random_context(Random & random, uint32_t n_ctx_each, size_t n_sequences, bool is_windowed) {
    const auto n = static_cast<uint32_t>(n_sequences);
    llama_context_params params = small_context(n_ctx_each * n, n);
    params.kv_unified = random.chance(50);
    params.n_batch = random.of({40U, 128U, 512U});
    params.n_ubatch = random.of({1U, 3U, 4U, 16U, 33U, 512U});
    params.flash_attn_type =
        random.of({LLAMA_FLASH_ATTN_TYPE_DISABLED, LLAMA_FLASH_ATTN_TYPE_AUTO, LLAMA_FLASH_ATTN_TYPE_ENABLED});
    params.swa_full = !is_windowed || random.chance(30);
    return params;
}

/// First seed and number of seeds: 1 and `n`, or what HARP_REPLAY_SEEDS=FIRST:COUNT says.
inline std::pair<unsigned, unsigned> seeds(unsigned n) {
    const char * given = std::getenv("HARP_REPLAY_SEEDS");
    if (given == nullptr) return {1, n};
    const std::string text = given;
    const size_t colon = text.find(':');
    const auto number = [](const std::string & digits) { return static_cast<unsigned>(std::stoul(digits)); };
    return {number(text.substr(0, colon)), colon == std::string::npos ? n : number(text.substr(colon + 1))};
}

}  // namespace harp::testing
