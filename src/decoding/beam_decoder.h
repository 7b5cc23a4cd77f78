// Beam search on a ForwardPass: all beams in one batch, over shared cells of the KV cache.
#pragma once

#include <functional>
#include <vector>

#include "decoding/beam_search.h"
#include "harp/forward_pass.h"

namespace harp::decoding {

struct BeamResult {
    std::vector<Hypothesis> hypotheses;  ///< best first; all that the search kept (at most BeamOptions::beams)
    size_t n_steps = 0;                  ///< steps of the search, the one on the prompt's logits included
    size_t n_rows = 0;                   ///< rows decoded after the prompt
    double prompt_seconds = 0;           ///< the prompt, and the twins' where they follow at once
    double seconds = 0;                  ///< from the first step to the last, without the prompt
    bool is_interrupted = false;
};

/// How a search reports and is stopped.
struct BeamCallbacks {
    std::function<void(size_t done, size_t total)> on_prompt;  ///< rows of the prompt
    std::function<bool(const BeamSearch &)> on_step;           ///< after each step. @return false to stop
};

/// Decodes `prompt` and searches the best continuations by the pass's final (mixed) log-probabilities.
///
///   sequence 0   p0 p1 p2 │ a  c          the beams share the prompt's cells, and those of the tokens that they have in
///   sequence 1   ^  ^  ^  │ a  d          common: a beam that branches is copied (unified cache: its cells are marked),
///   sequence 2   ^  ^  ^  │ b  e          one that died gives its sequence to a copy
///
/// Uses the sequences 0 .. beams-1 and empties all of the pass's memory first. Sampler settings have no part in it.
/// @param pass      for shared cells its context has a unified KV cache (kv_unified)
/// @param n_predict tokens of the longest hypothesis; 0: as many as the context has room for
/// @throws Error{invalid_option} options out of range, or more beams than the pass has sequences
/// @throws Error{invalid_input}  the prompt is empty, or the context has no room for it with n_predict tokens of each beam;
///                               also what ForwardPass::decode throws, except aborted, which ends the search
[[nodiscard]] BeamResult beam_decode(ForwardPass & pass, const std::vector<llama_token> & prompt, size_t n_predict,
                                     const BeamOptions & options, const BeamSearch::IsEnd & is_end,
                                     const BeamCallbacks & callbacks = {});

}  // namespace harp::decoding
