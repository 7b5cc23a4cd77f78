#include "method/ranking.h"

#include <algorithm>

namespace harp::method {

std::vector<int32_t> greatest(std::span<const float> values, size_t n) {
    const auto value = [&](int32_t i) { return values[static_cast<size_t>(i)]; };
    const auto is_greater = [&](int32_t a, int32_t b) { return value(a) != value(b) ? value(a) > value(b) : a < b; };
    // a heap of the greatest so far, the least on top, so that nearly every value costs one comparison
    std::vector<int32_t> found;
    n = std::min(n, values.size());
    if (n == 0) return found;
    found.reserve(n + 1);
    for (int32_t i = 0; i < static_cast<int32_t>(values.size()); ++i) {
        if (found.size() == n && !(value(i) > value(found.front()))) continue;
        found.push_back(i);
        std::push_heap(found.begin(), found.end(), is_greater);
        if (found.size() <= n) continue;
        std::pop_heap(found.begin(), found.end(), is_greater);
        found.pop_back();
    }
    std::sort(found.begin(), found.end(), is_greater);
    return found;
}

}  // namespace harp::method
