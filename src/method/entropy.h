// Measures of hesitation: Shannon entropy of the next-token distribution (HARP, arXiv 2412.07282, section 3.1), and the
// ratio of the second greatest probability to the greatest.
#pragma once

#include <span>

namespace harp::method {

struct SoftmaxSummary {
    double entropy_bits = 0;  ///< H = -sum_i p_i log2 p_i, 0 (certain) .. log2(n_vocab) (uniform)
    double log_sum_exp = 0;   ///< ln sum_i exp(logit_i): log p_i = logit_i - log_sum_exp, natural logarithm
    float largest = 0;        ///< greatest logit
    double ratio = 0;         ///< second greatest probability over the greatest, 0 (certain) .. 1 (a tie)
};

/// Entropy, normaliser and ratio of p = softmax(logits).
///
/// Stable for any finite logits (the maximum is subtracted first); a logit of -infinity is a token of probability 0.
/// Sums are accumulated in double. Vectorised for the CPU that it runs on (Highway, chosen at run time).
///
/// @param logits [n_vocab], raw: before temperature and penalties; not empty
/// @return NaN entropy if a logit is NaN or +infinity, or all are -infinity
/// Cost: two passes over n_vocab, no allocation. Thread-safe.
[[nodiscard]] SoftmaxSummary summarise_softmax(std::span<const float> logits) noexcept;

[[nodiscard]] inline double entropy_bits(std::span<const float> logits) noexcept {
    return summarise_softmax(logits).entropy_bits;
}

}  // namespace harp::method
