// What a batch of n rows costs on this model and device, and which schedule that makes the cheaper one.
//
// Learned from the decode calls themselves, so it costs nothing and follows the context as it grows.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "harp/options.h"

namespace harp::forward {

class CostModel {
  public:
    /// A decode call of `n_rows` rows took `seconds`. Larger batches than max_rows are prefill and not kept.
    void add_call(size_t n_rows, double seconds);
    /// An output row was judged.
    void add_step(bool hesitated);

    /// Time of a call of n rows, seconds, the lower quartile of the latest of a size and never less than of fewer rows;
    /// between measured sizes linear, above the largest in proportion.
    /// @return nullopt until a size has been measured often enough
    [[nodiscard]] std::optional<double> call_seconds(double n_rows) const;
    [[nodiscard]] bool is_measured(size_t n_rows) const;
    [[nodiscard]] double hesitation_share() const noexcept { return share_; }

    /// Predicted time of a step that decodes `n_sequences` rows, with their `n_twins` twin rows in the same call.
    [[nodiscard]] std::optional<double> fused_seconds(size_t n_sequences, size_t n_twins) const;
    /// The same when each twin catches up at its sequence's hesitations: after 1 / share steps on average.
    [[nodiscard]] std::optional<double> lazy_seconds(size_t n_sequences, size_t n_twins) const;

    /// The schedule for the next step. Lazy first; tries fused a few times once lazy is known, and lazy for a while where its
    /// catch-up batches are still guessed; then keeps the cheaper one, with some inertia against changing back and forth.
    [[nodiscard]] Schedule choose(size_t n_sequences, size_t n_twins);
    [[nodiscard]] Schedule chosen() const noexcept { return chosen_; }

    static constexpr size_t max_rows = 32;

  private:
    static constexpr size_t window = 9;       // latest calls of a size that its quartile is taken over
    static constexpr size_t min_calls = 3;    // calls of a size that make it known
    static constexpr size_t max_trials = 32;  // steps that lazy is tried for to learn its catch-up batches

    /// Batches of about the same size: catch-ups come in all sizes, and each alone would take long to know.
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
