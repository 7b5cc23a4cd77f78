#include "forward/cost_model.h"

#include <algorithm>
#include <cmath>

namespace harp::forward {

namespace {

/// The quartile from below: what disturbs a measurement (another program on the cores) only ever makes it longer.
double typical(std::vector<double> seconds) {
    const auto quartile = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 4);
    std::nth_element(seconds.begin(), quartile, seconds.end());
    return *quartile;
}

}  // namespace

void CostModel::add_call(size_t n_rows, double seconds) {
    if (n_rows == 0 || n_rows > max_rows) return;
    std::vector<double> & latest = calls_[n_rows];
    if (latest.size() < window) {
        latest.push_back(seconds);
    } else {
        latest[n_calls_[n_rows] % window] = seconds;
    }
    ++n_calls_[n_rows];
}

void CostModel::add_step(bool hesitated) {
    // a plain mean at first, then a memory of about 64 steps
    ++n_steps_;
    const double weight = 1.0 / static_cast<double>(std::min<uint64_t>(n_steps_ + 2, 64));
    share_ += weight * ((hesitated ? 1.0 : 0.0) - share_);
}

bool CostModel::is_measured(size_t n_rows) const {
    return n_rows <= max_rows && n_calls_[n_rows] >= min_calls;
}

std::optional<double> CostModel::call_seconds(double n_rows) const {
    size_t below = 0;
    size_t above = 0;
    double low = 0;
    for (size_t n = 1; n <= max_rows && above == 0; ++n) {
        if (!is_measured(n)) continue;
        if (static_cast<double>(n) >= n_rows) above = n;
        if (static_cast<double>(n) <= n_rows) below = n;
        if (below == n) low = std::max(low, typical(calls_[n]));  // a larger batch never costs less
    }
    if (below == 0 && above == 0) return std::nullopt;
    if (below == 0) return typical(calls_[above]);
    if (above == below) return low;
    if (above == 0) return low * n_rows / static_cast<double>(below);
    const double high = std::max(low, typical(calls_[above]));
    const double part = (n_rows - static_cast<double>(below)) / static_cast<double>(above - below);
    return low + part * (high - low);
}

std::optional<double> CostModel::fused_seconds(size_t n_sequences, size_t n_twins) const {
    if (!is_measured(n_sequences + n_twins)) return std::nullopt;
    return call_seconds(static_cast<double>(n_sequences + n_twins));
}

std::optional<double> CostModel::lazy_seconds(size_t n_sequences, size_t n_twins) const {
    const auto clean = call_seconds(static_cast<double>(n_sequences));
    if (!clean || !is_measured(n_sequences)) return std::nullopt;
    const double any = 1.0 - std::pow(1.0 - share_, static_cast<double>(n_sequences));
    if (any <= 0.0) return clean;
    const auto catch_up = call_seconds(static_cast<double>(n_twins) / any);
    return *clean + any * *catch_up;
}

Schedule CostModel::choose(size_t n_sequences, size_t n_twins) {
    const auto lazy = lazy_seconds(n_sequences, n_twins);
    const auto fused = fused_seconds(n_sequences, n_twins);
    if (!lazy) return chosen_ = Schedule::lazy;
    if (!fused) return chosen_ = Schedule::fused;  // try it; measured after a few steps
    constexpr double inertia = 0.97;               // the other one must be at least 3 % cheaper
    if (chosen_ == Schedule::lazy && *fused < inertia * *lazy) chosen_ = Schedule::fused;
    if (chosen_ == Schedule::fused && *lazy < inertia * *fused) chosen_ = Schedule::lazy;
    return chosen_;
}

}  // namespace harp::forward
