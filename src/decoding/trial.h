// Tries many sets of options on examples. Each example is read once for all sets that can share a reading.
#pragma once

#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "harp/forward_pass.h"

namespace harp::decoding {

/// A text to predict, or a question with at least two choices.
struct TrialExample {
    std::vector<llama_token> context;
    std::vector<std::vector<llama_token>> continuations;  ///< one, or the choices
    size_t answer = 0;                                    ///< index of the right one
};

enum class Metric {
    accuracy,        ///< 1 or 0: every token is the most likely one; with choices: the right one is the most likely
    log_likelihood,  ///< of the right continuation, nats per token
};

/// The results of one set of options.
struct TrialResult {
    Options options;
    std::vector<double> values;  ///< [examples]
    size_t n_steps = 0;          ///< scored tokens of continuations
    size_t n_hesitations = 0;

    [[nodiscard]] double mean() const;
    [[nodiscard]] double hesitation_share() const;
};

/// Called with the continuations done and in all. @return false to stop
using OnTrialProgress = std::function<bool(size_t done, size_t total)>;

/// Tries each set on each example.
///
/// @param sets            each passes validate(); the pass was created with at least their largest number of reframings
/// @param negative_prompt what sets with View::guidance read instead of the context; if empty, the context's last token
/// @return [sets]; empty if stopped
/// @throws what BatchScorer throws; changes the pass's options
[[nodiscard]] std::vector<TrialResult> run_trial(ForwardPass & pass, std::span<const TrialExample> examples,
                                                 std::span<const Options> sets, Metric metric,
                                                 const OnTrialProgress & on_progress,
                                                 const std::vector<llama_token> & negative_prompt = {});

/// Number of readings that run_trial() makes for these sets.
[[nodiscard]] size_t count_readings(std::span<const Options> sets);

}  // namespace harp::decoding
