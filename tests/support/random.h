// Random choices for tests that replay what they chose.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <string>
#include <utility>

namespace harp::testing {

/// The same on each machine, unlike the standard distributions.
class Random {
  public:
    explicit Random(unsigned seed) : engine_(seed) {}
    /// 0 .. n - 1, or 0
    int below(int n) { return static_cast<int>(engine_() % static_cast<unsigned>(std::max(1, n))); }
    bool chance(int percent) { return below(100) < percent; }
    template <typename T>
    T of(std::initializer_list<T> values) {
        return *(values.begin() + below(static_cast<int>(values.size())));
    }

  private:
    std::mt19937 engine_;
};

/// First seed and number of seeds: 1 and `n`, or what HARP_REPLAY_SEEDS=FIRST:COUNT says.
inline std::pair<unsigned, unsigned> seeds(unsigned n) {
    const char * given = std::getenv("HARP_REPLAY_SEEDS");
    if (given == nullptr) return {1, n};
    const std::string text = given;
    const size_t colon = text.find(':');
    const auto number = [](const std::string & digits) { return static_cast<unsigned>(std::stoul(digits)); };
    return {number(text.substr(0, colon)), colon == std::string::npos ? n : number(text.substr(colon + 1))};
}

}  // namespace harp::testing
