#include "forward/cost_model.h"

#include <algorithm>
#include <cmath>

namespace harp::forward {

double CostModel::Size::mean_rows() const {
    double sum = 0;
    for (const auto & [rows, unused] : latest) sum += static_cast<double>(rows);
    return sum / static_cast<double>(latest.size());
}

/// The lower quartile, because a disturbance (another program on the cores) can only make a measurement longer.
double CostModel::Size::seconds() const {
    std::vector<double> values;
    for (const auto & [unused, seconds] : latest) values.push_back(seconds);
    const auto quartile = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 4);
    std::nth_element(values.begin(), quartile, values.end());
    return *quartile;
}

void CostModel::add_call(size_t n_rows, double seconds) {
    for (Size & size : sizes_) {
        if (n_rows < size.smallest || n_rows > size.largest) continue;
        if (size.latest.size() < window) {
            size.latest.emplace_back(n_rows, seconds);
        } else {
            size.latest[size.n_calls % window] = {n_rows, seconds};
        }
        ++size.n_calls;
    }
}

void CostModel::add_step(bool hesitated) {
    // a plain mean at first, then an exponential mean over about 64 steps
    ++n_steps_;
    const double weight = 1.0 / static_cast<double>(std::min<uint64_t>(n_steps_ + 2, 64));
    share_ += weight * ((hesitated ? 1.0 : 0.0) - share_);
}

bool CostModel::is_measured(size_t n_rows) const {
    return std::any_of(sizes_.begin(), sizes_.end(), [&](const Size & size) {
        return n_rows >= size.smallest && n_rows <= size.largest && size.is_known();
    });
}

std::optional<double> CostModel::call_seconds(double n_rows) const {
    double rows_below = 0;
    double low = 0;
    for (const Size & size : sizes_) {
        if (!size.is_known()) continue;
        const double rows = size.mean_rows();
        const double seconds = std::max(low, size.seconds());  // a larger batch never costs less
        if (rows >= n_rows) {
            if (rows_below == 0 || rows == n_rows) return seconds;
            return low + (n_rows - rows_below) / (rows - rows_below) * (seconds - low);
        }
        rows_below = rows;
        low = seconds;
    }
    if (rows_below == 0) return std::nullopt;
    return low * n_rows / rows_below;
}

double CostModel::added_share(size_t n_rows, size_t n_twin_rows) const {
    const auto all = static_cast<double>(n_rows);
    const auto others = static_cast<double>(n_rows - n_twin_rows);
    const auto seconds = call_seconds(all);
    return 1.0 - (seconds ? *call_seconds(others) / *seconds : others / all);
}

std::optional<double> CostModel::fused_seconds(size_t n_sequences, size_t n_twins) const {
    if (!is_measured(n_sequences + n_twins)) return std::nullopt;
    return call_seconds(static_cast<double>(n_sequences + n_twins));
}

/// Share of the steps at which at least one of the sequences hesitates.
static double any_hesitates(double share, size_t n_sequences) {
    return 1.0 - std::pow(1.0 - share, static_cast<double>(n_sequences));
}

double CostModel::mean_catch_up_rows(size_t n_sequences, size_t n_twins) const {
    return static_cast<double>(n_twins) / any_hesitates(share_, n_sequences);
}

std::optional<double> CostModel::lazy_seconds(size_t n_sequences, size_t n_twins) const {
    const auto clean = call_seconds(static_cast<double>(n_sequences));
    if (!clean || !is_measured(n_sequences)) return std::nullopt;
    const double any = any_hesitates(share_, n_sequences);
    if (any <= 0.0) return clean;
    return *clean + any * *call_seconds(mean_catch_up_rows(n_sequences, n_twins));
}

/// Whether the time of a batch is extrapolated from much smaller ones. From some size on kernels can be far cheaper per
/// row.
bool CostModel::is_guess(double n_rows) const {
    double largest = 0;
    for (const Size & size : sizes_) {
        if (size.is_known()) largest = size.mean_rows();
    }
    return std::min(n_rows, static_cast<double>(max_rows)) > 1.5 * largest;
}

Schedule CostModel::choose(size_t n_sequences, size_t n_twins) {
    const auto lazy = lazy_seconds(n_sequences, n_twins);
    const auto fused = fused_seconds(n_sequences, n_twins);
    if (!lazy) return chosen_ = Schedule::lazy;
    if (!fused) return chosen_ = Schedule::fused;  // try it: it is measured after a few steps
    if (n_trials_ < max_trials && share_ > 0 && is_guess(mean_catch_up_rows(n_sequences, n_twins))) {
        ++n_trials_;
        return chosen_ = Schedule::lazy;
    }
    constexpr double inertia = 0.97;  // a schedule must be at least 3 % cheaper to replace the current one
    if (chosen_ == Schedule::lazy && *fused < inertia * *lazy) chosen_ = Schedule::fused;
    if (chosen_ == Schedule::fused && *lazy < inertia * *fused) chosen_ = Schedule::lazy;
    return chosen_;
}

}  // namespace harp::forward
