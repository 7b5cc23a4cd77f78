// What is to be answered and how: everything that a generation takes, in one place.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "decoding/beam_search.h"
#include "decoding/sampler.h"
#include "harp/forward_pass.h"

namespace harp::decoding {

struct GenerationLimits {
    int n_predict = -1;                            ///< tokens; negative: until the model ends or the context is full
    std::vector<std::string> stop_strings;         ///< generation ends once the text contains one of them
    std::function<bool(llama_token)> is_end = {};  ///< which tokens end an answer; empty: the model's end tokens
};

struct Request {
    std::vector<llama_token> prompt;
    GenerationLimits limits;
    // The strategy: one of the two. (Drafting is not a strategy: a Generator with a Drafter gives the same tokens,
    // sooner.)
    std::optional<Sampler> sampler = std::nullopt;    ///< samples one answer
    std::optional<BeamOptions> beams = std::nullopt;  ///< the most probable answers, by the final log-probabilities

    std::optional<Options> options = std::nullopt;  ///< nullopt: the sequence's current ones; required with HARP off
    uint32_t mask_family = 0;                       ///< which of the seed's mask families
    std::vector<llama_token> negative_prompt = {};  ///< ForwardPass::set_negative_prompt
    /// Tokens of the prompt that a kept sequence begins with are not decoded again; the sequence is kept again
    /// afterwards.
    bool reuses_prefix = false;
    bool records = true;  ///< with HARP off, whether to compute the steps' records too (an entropy each)

    [[nodiscard]] size_t n_sequences() const { return beams ? beams->beams : 1; }
};

/// @throws Error{invalid_option}, also for options that contradict each other and for more beams than the pass has
///         sequences; Error{invalid_input} if the prompt is empty or the context has no room for it and the answer
void validate(const Request & request, const ForwardPass & pass);

/// Tokens that each answer can have after the prompt. Beams share the prompt's cells, but not those of their own
/// tokens; the last token needs no cell.
[[nodiscard]] size_t room_for_answer(const Request & request, const ForwardPass & pass);

}  // namespace harp::decoding
