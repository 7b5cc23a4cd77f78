// Mixing of logits: plain loops that the compiler vectorises. Compile this file without contracting a product and
// a sum (-ffp-contract=off): a fused multiply-add rounds once where the authors' code rounds twice.
#include "method/mixing.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <limits>

#include "method/entropy.h"

namespace harp::method {

namespace {

// Copies a row to another place, or does nothing if it is there already.
void copy_row(std::span<const float> from, std::span<float> to) noexcept {
    if (from.data() != to.data()) std::copy(from.begin(), from.end(), to.begin());
}

void average(std::span<const float> vanilla, std::span<const float> reframed, float beta,
             std::span<float> out) noexcept {
    // At both ends the formula would turn an infinite logit into NaN (0 * infinity) and -0 into +0.
    if (beta == 1.0F) return copy_row(vanilla, out);
    if (beta == 0.0F) return copy_row(reframed, out);
    const float gamma = 1.0F - beta;
    for (size_t i = 0; i < out.size(); ++i) out[i] = beta * vanilla[i] + gamma * reframed[i];
}

void contrast(std::span<const float> vanilla, std::span<const float> reframed, const Mix & mix,
              std::span<float> out) noexcept {
    const SoftmaxSummary summary = summarise_softmax(vanilla);
    const auto vanilla_norm = static_cast<float>(summary.log_sum_exp);
    const auto reframed_norm = static_cast<float>(summarise_softmax(reframed).log_sum_exp);
    // from the logit, not from a probability, so that no rounding can exclude the most probable token
    const float least = summary.largest + std::log(mix.plausibility);
    constexpr float lowest = std::numeric_limits<float>::lowest();
    const float gamma = 1.0F - mix.beta;
    for (size_t i = 0; i < out.size(); ++i) {
        const float log_p = vanilla[i] - vanilla_norm;
        const float contrasted = mix.beta * log_p + gamma * (reframed[i] - reframed_norm);
        const bool changes = vanilla[i] >= least && vanilla[i] >= lowest && reframed[i] >= lowest;
        out[i] = changes ? contrasted : log_p;
    }
}

}  // namespace

void mix_logits(std::span<const float> vanilla, std::span<const float> reframed, const Mix & mix,
                std::span<float> out) noexcept {
    assert(vanilla.size() == reframed.size() && vanilla.size() == out.size());
    if (mix.beta <= 1.0F) {
        average(vanilla, reframed, mix.beta, out);
    } else {
        contrast(vanilla, reframed, mix, out);
    }
}

void accumulate_mean(std::span<const float> logits, unsigned count, std::span<float> mean) noexcept {
    assert(count > 0 && logits.size() == mean.size());
    // 0 + x would turn -0 into +0
    if (count == 1) return copy_row(logits, mean);
    const float n = static_cast<float>(count);
    for (size_t i = 0; i < mean.size(); ++i) mean[i] += logits[i] / n;
}

}  // namespace harp::method
