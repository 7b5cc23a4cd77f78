// A text scored under many combinations of options, without running any pass twice.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "decoding/score.h"

namespace harp::decoding {

struct SweepRow {
    Options options;
    ScoreSummary summary;
    double seconds = 0;  ///< of the pass that gave the row, possibly shared (can_share_reading()); 0 if none ran
};

/// Called with the tokens done and in all of pass `pass` of `n_passes`. @return false to stop
using OnSweepProgress = std::function<bool(size_t done, size_t total, size_t pass, size_t n_passes)>;

/// Scores `tokens` under each combination: one pass for all that can_share_reading(), none for vanilla ones.
///
/// @param pass         created with at least the combinations' largest number of reframings; its options are changed
/// @param vanilla      score() of the same tokens and window with an infinite threshold
/// @param combinations each passes validate()
/// @param negative_prompt for combinations with View::guidance
/// @return the complete rows, in the order of `combinations`; fewer if on_progress or the abort callback stopped it
/// @throws as score()
[[nodiscard]] std::vector<SweepRow> sweep(ForwardPass & pass, const std::vector<llama_token> & tokens, size_t window,
                                          std::span<const Options> combinations,
                                          const std::vector<TokenScore> & vanilla, const OnSweepProgress & on_progress,
                                          const std::vector<llama_token> & negative_prompt = {});

}  // namespace harp::decoding
