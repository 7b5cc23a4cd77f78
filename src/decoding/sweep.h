// A text scored under many combinations of options, with no pass run twice.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "decoding/score.h"

namespace harp::decoding {

struct SweepRow {
    Options options;
    ScoreSummary summary;
    double seconds =
        0;  ///< of the pass that gave the row; combinations that can_share_reading() share one; 0: none ran
};

/// Tokens done and tokens in all of pass `pass` of `n_passes`; false stops.
using OnSweepProgress = std::function<bool(size_t done, size_t total, size_t pass, size_t n_passes)>;

/// Scores `tokens` once for each combination: one pass for all that can_share_reading(), none for vanilla ones.
///
/// @param pass         made with the largest number of reframings among the combinations; its options are others afterwards
/// @param vanilla      score() of the same tokens and window with an infinite threshold
/// @param combinations each passes validate()
/// @param negative_prompt for combinations with View::guidance
/// @return the rows that are complete, in the order of `combinations`; fewer if stopped by on_progress or the abort callback
/// @throws as score()
[[nodiscard]] std::vector<SweepRow> sweep(ForwardPass & pass, const std::vector<llama_token> & tokens, size_t window,
                                          std::span<const Options> combinations,
                                          const std::vector<TokenScore> & vanilla, const OnSweepProgress & on_progress,
                                          const std::vector<llama_token> & negative_prompt = {});

}  // namespace harp::decoding
