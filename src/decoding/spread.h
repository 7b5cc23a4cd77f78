// Median and range of repeated measurements.
#pragma once

#include <algorithm>
#include <vector>

namespace harp::decoding {

struct Spread {
    double median = 0, low = 0, high = 0;
};

/// All zero if there are no values.
[[nodiscard]] inline Spread spread_of(std::vector<double> values) {
    if (values.empty()) return {};
    std::sort(values.begin(), values.end());
    const size_t n = values.size();
    return {(values[(n - 1) / 2] + values[n / 2]) / 2, values.front(), values.back()};
}

}  // namespace harp::decoding
