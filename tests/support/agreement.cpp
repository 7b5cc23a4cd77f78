#include "support/agreement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace harp::testing {

namespace {

std::vector<double> log_probabilities(std::span<const float> logits) {
    std::vector<double> values(logits.begin(), logits.end());
    const double top = *std::max_element(values.begin(), values.end());
    double sum = 0;
    for (const double value : values) sum += std::exp(value - top);
    for (double & value : values) value -= top + std::log(sum);
    return values;
}

}  // namespace

double divergence(std::span<const float> a, std::span<const float> b) {
    if (a.size() != b.size() || a.empty()) return NAN;
    const std::vector<double> of_a = log_probabilities(a), of_b = log_probabilities(b);
    double sum = 0;
    for (size_t i = 0; i < of_a.size(); ++i) {
        if (of_a[i] == -HUGE_VAL) continue;  // a token of probability 0 adds nothing
        sum += std::exp(of_a[i]) * (of_a[i] - of_b[i]);
    }
    return sum;
}

void Agreement::add(std::span<const float> a, std::span<const float> b) {
    const double value = divergence(a, b);
    ++n_compared_;
    sum_ += value;
    if (!(value <= largest_)) largest_ = value;  // NaN too
}

void Agreement::add(std::span<const float> a, StepRecord ra, std::span<const float> b, StepRecord rb) {
    if (ra.hesitated != rb.hesitated) {
        ++n_parted_;
    } else {
        add(a, b);
    }
}

double Agreement::mean() const noexcept {
    return sum_ / static_cast<double>(n_compared_);
}

void Agreement::expect(size_t least, double most) const {
    EXPECT_GE(n_compared_, least) << n_parted_ << " steps parted";
    EXPECT_LE(mean(), most) << "nats, mean of " << n_compared_ << " steps; the largest: " << largest_;
}

}  // namespace harp::testing
