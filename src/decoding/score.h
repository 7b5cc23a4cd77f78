// Log-likelihood of a given text, vanilla and with HARP, paired token by token.
//
// Rows do not depend on later rows, so one clean pass and one reframed pass give the logits of every position: each
// position is the last one once (docs/METHOD.md).
#pragma once

#include <functional>
#include <vector>

#include "harp/forward_pass.h"

namespace harp::decoding {

struct TokenScore {
    double vanilla = 0;  ///< log p of the token, natural logarithm
    double harp = 0;     ///< the same from the mixed logits; equal to `vanilla` without a hesitation
    StepRecord record;   ///< of the step that predicts the token
};

/// Output rows of a scoring batch. Bounded by memory, because their logits are kept twice (clean and reframed).
[[nodiscard]] size_t output_rows_per_batch(const ForwardPass & pass);

/// Called after each batch with the rows done and the rows in all. @return false to stop
using OnScoreProgress = std::function<bool(size_t done, size_t total)>;

/// Scores tokens[1..] of one sequence in windows of at most `window` tokens. Each window begins anew, with the
/// beginning-of-sequence token if the model uses one. A window's first token is not scored.
///
/// @param window          2 .. pass.n_ctx_seq()
/// @param negative_prompt what View::guidance reads instead of each window's first token
/// @return one score for each scored token, in order; if stopped, those of the complete windows
/// @throws Error{invalid_input} if there are fewer than two tokens or the window is out of range; what decode() throws
[[nodiscard]] std::vector<TokenScore> score(ForwardPass & pass, const std::vector<llama_token> & tokens, size_t window,
                                            const OnScoreProgress & on_progress,
                                            const std::vector<llama_token> & negative_prompt = {});

/// score() with several options from one reading (ScoreRequest::options says which can share one). Changes the pass's
/// options.
///
/// @param options if empty, the pass's own
/// @return [options], at least one: what score() gives with each
/// @throws as score(); Error{invalid_option}
[[nodiscard]] std::vector<std::vector<TokenScore>> score_each(ForwardPass & pass,
                                                              const std::vector<llama_token> & tokens, size_t window,
                                                              const std::vector<Options> & options,
                                                              const OnScoreProgress & on_progress,
                                                              const std::vector<llama_token> & negative_prompt = {});

/// Mean with its standard error, as if tokens were independent.
struct Mean {
    double value = 0;
    double standard_error = 0;  ///< NaN of fewer than two values
};
struct ScoreSummary {
    size_t n_tokens = 0;
    size_t n_hesitations = 0;
    Mean vanilla;     ///< negative log-likelihood per token, nats
    Mean harp;        ///< the same
    Mean difference;  ///< harp - vanilla, paired by token: negative is better
};
[[nodiscard]] ScoreSummary summarise(const std::vector<TokenScore> & scores);

}  // namespace harp::decoding
