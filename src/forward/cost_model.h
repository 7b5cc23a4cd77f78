// What a batch of n rows costs on this model and device, and which schedule is therefore cheaper.
//
// Learned from the decode calls themselves, so measuring costs nothing and follows the context as it grows.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "harp/options.h"

namespace harp::forward {

class CostModel {
  public:
    /// Records that a decode call of `n_rows` rows took `seconds`. Batches above max_rows are prefill and are ignored.
    void add_call(size_t n_rows, double seconds);
    /// Records that an output row was judged.
    void add_step(bool hesitated);

    /// Time of a call of n rows, in seconds: the lower quartile of the latest calls of that size, and never less than
    /// for fewer rows. Interpolated linearly between measured sizes, and in proportion to the rows above the largest.
    /// @return nullopt until some size has been measured often enough
    [[nodiscard]] std::optional<double> call_seconds(double n_rows) const;
    [[nodiscard]] bool is_measured(size_t n_rows) const;
    /// Share of the time of a call of n_rows rows that n_twin_rows < n_rows of them added: their share of the rows while
    /// nothing is measured, 0 where the larger batch takes no longer.
    [[nodiscard]] double added_share(size_t n_rows, size_t n_twin_rows) const;
    [[nodiscard]] double hesitation_share() const noexcept { return share_; }

    /// Predicted time of a step that decodes `n_sequences` clean rows and `n_twins` twin rows in one call.
    [[nodiscard]] std::optional<double> fused_seconds(size_t n_sequences, size_t n_twins) const;
    /// Predicted time of a step if twins catch up at hesitations, each every 1 / share steps on average.
    [[nodiscard]] std::optional<double> lazy_seconds(size_t n_sequences, size_t n_twins) const;

    /// The schedule for the next step. Starts with lazy; tries fused for a few steps once lazy is measured; goes back
    /// to lazy for a while if the cost of its catch-up batches is still a guess. Then it keeps the cheaper schedule,
    /// with some inertia so that it does not switch back and forth.
    [[nodiscard]] Schedule choose(size_t n_sequences, size_t n_twins);
    [[nodiscard]] Schedule chosen() const noexcept { return chosen_; }

    static constexpr size_t max_rows = 32;

  private:
    static constexpr size_t window = 9;       // latest calls of a size, from which the quartile is taken
    static constexpr size_t min_calls = 3;    // calls after which a size counts as measured
    static constexpr size_t max_trials = 32;  // steps for which lazy is tried to measure its catch-up batches

    /// Batches of about the same size. Catch-ups come in all sizes; measuring each size separately would take long.
    struct Size {
        size_t smallest, largest;                            // rows
        std::vector<std::pair<size_t, double>> latest = {};  // (rows, seconds)
        size_t n_calls = 0;

        [[nodiscard]] bool is_known() const noexcept { return n_calls >= min_calls; }
        [[nodiscard]] double mean_rows() const;
        [[nodiscard]] double seconds() const;
    };
    [[nodiscard]] double mean_catch_up_rows(size_t n_sequences, size_t n_twins) const;
    [[nodiscard]] bool is_guess(double n_rows) const;

    std::array<Size, 7> sizes_ = {{{1, 1}, {2, 2}, {3, 3}, {4, 4}, {5, 8}, {9, 16}, {17, 32}}};
    double share_ = 0.4;  // of hesitating steps, exponentially weighted
    uint64_t n_steps_ = 0;
    size_t n_trials_ = 0;
    Schedule chosen_ = Schedule::lazy;
};

}  // namespace harp::forward
