// Contexts whose sequences share one cache, and texts for them.
#pragma once

#include <cstddef>
#include <vector>

#include "support/models.h"

namespace harp::testing {

inline Options hesitant(double threshold = 0.5) {
    Options options;
    options.threshold = threshold;
    options.schedule = Schedule::lazy;
    return options;
}

/// `n` tokens of meaningless text, always the same.
inline std::vector<llama_token> meaningless_text(size_t n, llama_token first = 300, llama_token period = 97) {
    std::vector<llama_token> tokens(n);
    for (size_t i = 0; i < n; ++i) tokens[i] = first + static_cast<llama_token>(i * 7 % static_cast<size_t>(period));
    return tokens;
}

inline llama_context_params pool(uint32_t n_ctx, uint32_t n_sequences) {
    llama_context_params params = small_context(n_ctx, n_sequences);
    params.kv_unified = true;
    return params;
}

}  // namespace harp::testing
