// The greatest of many values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace harp::method {

/// Indices of the `n` greatest values (all, if there are fewer), the greatest first; of equal ones the first.
[[nodiscard]] std::vector<int32_t> greatest(std::span<const float> values, size_t n);

}  // namespace harp::method
