// Agreement of two runs as distributions. In quantised models an activation that rounds the other way, because a sum
// was added in another order, moves logits by whole units but probabilities hardly. Such runs are compared this way,
// not by logits.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "harp/forward_pass.h"

namespace harp::testing {

/// Kullback-Leibler divergence of the distribution of logits `b` from that of `a`, nats; NaN if any logit is NaN.
double divergence(std::span<const float> a, std::span<const float> b);

/// The divergences of the steps of two runs.
class Agreement {
  public:
    void add(std::span<const float> a, std::span<const float> b);
    /// Steps with records. If only one of the two hesitated, one is mixed and the other is not, so they are counted but
    /// not compared.
    void add(std::span<const float> a, StepRecord ra, std::span<const float> b, StepRecord rb);

    [[nodiscard]] size_t n_compared() const noexcept { return n_compared_; }
    [[nodiscard]] size_t n_parted() const noexcept { return n_parted_; }  ///< only one hesitated
    [[nodiscard]] double mean() const noexcept;                           ///< divergence of a compared step, nats
    [[nodiscard]] double largest() const noexcept { return largest_; }

    /// Fails the test if the mean is above `most` nats (or not a number), or if fewer than `least` steps were compared.
    void expect(size_t least, double most) const;

  private:
    size_t n_compared_ = 0, n_parted_ = 0;
    double sum_ = 0, largest_ = 0;
};

}  // namespace harp::testing
