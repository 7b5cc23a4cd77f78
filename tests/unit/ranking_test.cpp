// The greatest of many values are those of a whole sort.
#include "method/ranking.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace harp::method {
namespace {

TEST(Ranking, IsThatOfAStableSort) {
    std::mt19937 random{3};
    for (const int n_different : {1, 3, 100000}) {
        for (const size_t n_values : {1U, 2U, 50U, 3000U}) {
            std::vector<float> values(n_values);
            for (float & value : values) value = static_cast<float>(random() % static_cast<unsigned>(n_different));
            if (n_values > 2) values[1] = -std::numeric_limits<float>::infinity();
            std::vector<int32_t> sorted(n_values);
            std::iota(sorted.begin(), sorted.end(), 0);
            std::stable_sort(sorted.begin(), sorted.end(), [&](int32_t a, int32_t b) {
                return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
            });
            for (const size_t n : {size_t{0}, size_t{1}, size_t{7}, n_values, n_values + 1}) {
                const auto end = sorted.begin() + static_cast<std::ptrdiff_t>(std::min(n, n_values));
                EXPECT_EQ(greatest(values, n), std::vector<int32_t>(sorted.begin(), end)) << n_values << ", " << n;
            }
        }
    }
}

}  // namespace
}  // namespace harp::method
