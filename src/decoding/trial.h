// Many sets of options tried on examples, each example read once for all sets that can share a reading.
#pragma once

#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "harp/forward_pass.h"

namespace harp::decoding {

/// A text to predict, or a question with choices.
struct TrialExample {
    std::vector<llama_token> context;
    std::vector<std::vector<llama_token>> continuations;  ///< one, or the choices
    size_t answer = 0;                                    ///< which of them is right
};

enum class Metric {
    accuracy,        ///< of a continuation: each of its tokens is the most likely one; of choices: the right one is
    log_likelihood,  ///< of the right continuation, nats per token
};

/// What the examples came to under one set of options.
struct TrialResult {
    Options options;
    std::vector<double> values;  ///< [examples]
    size_t n_steps = 0;          ///< tokens of continuations
    size_t n_hesitations = 0;

    [[nodiscard]] double mean() const;
    [[nodiscard]] double hesitation_share() const;
};

/// Continuations done and in all; false stops.
using OnTrialProgress = std::function<bool(size_t done, size_t total)>;

/// Tries each set on each example.
///
/// @param sets            each passes validate(); the pass was made with the most reframings among them
/// @param negative_prompt what sets with View::guidance read instead of the context; none: the context's last token
/// @return [sets]; nothing if stopped
/// @throws what BatchScorer throws; the pass has other options afterwards
[[nodiscard]] std::vector<TrialResult> run_trial(ForwardPass & pass, std::span<const TrialExample> examples,
                                                 std::span<const Options> sets, Metric metric,
                                                 const OnTrialProgress & on_progress,
                                                 const std::vector<llama_token> & negative_prompt = {});

/// Readings that run_trial() makes of these sets.
[[nodiscard]] size_t count_readings(std::span<const Options> sets);

}  // namespace harp::decoding
