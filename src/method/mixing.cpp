// Mixing of logits: plain loops that the compiler vectorises. This file must be compiled without contraction
// of a product and a sum (-ffp-contract=off): a fused multiply-add rounds once where the authors' code rounds
// twice.
#include "method/mixing.h"

#include <algorithm>
#include <cassert>
#include <cstddef>

namespace harp::method {

namespace {

// Copies a row onto itself or elsewhere.
void copy_row(std::span<const float> from, std::span<float> to) noexcept {
    if (from.data() != to.data()) std::copy(from.begin(), from.end(), to.begin());
}

}  // namespace

void mix_logits(std::span<const float> vanilla, std::span<const float> reframed, float beta,
                std::span<float> out) noexcept {
    assert(vanilla.size() == reframed.size() && vanilla.size() == out.size());
    // At both ends the formula would make NaN of an infinite logit (0 * infinity) and +0 of -0.
    if (beta == 1.0F) return copy_row(vanilla, out);
    if (beta == 0.0F) return copy_row(reframed, out);
    const float gamma = 1.0F - beta;
    for (size_t i = 0; i < out.size(); ++i) out[i] = beta * vanilla[i] + gamma * reframed[i];
}

void accumulate_mean(std::span<const float> logits, unsigned count, std::span<float> mean) noexcept {
    assert(count > 0 && logits.size() == mean.size());
    // 0 + x would make +0 of -0
    if (count == 1) return copy_row(logits, mean);
    const float n = static_cast<float>(count);
    for (size_t i = 0; i < mean.size(); ++i) mean[i] += logits[i] / n;
}

}  // namespace harp::method
