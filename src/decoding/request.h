// What is to be answered, and how: all that a generation takes, on one page.
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
    std::vector<std::string> stop_strings;         ///< generation ends once the text holds one of them
    std::function<bool(llama_token)> is_end = {};  ///< which tokens end an answer; empty: the model's
};

struct Request {
    std::vector<llama_token> prompt;
    GenerationLimits limits;
    // the strategy, one of the two. (A draft is no strategy: a Generator with a Drafter gives the same tokens, sooner.)
    std::optional<Sampler> sampler = std::nullopt;    ///< samples one answer
    std::optional<BeamOptions> beams = std::nullopt;  ///< the most probable answers, by the final log-probabilities

    std::optional<Options> options = std::nullopt;  ///< nullopt: those the sequence has; must be so with HARP off
    uint32_t mask_family = 0;                       ///< which of the seed's mask families
    std::vector<llama_token> negative_prompt = {};  ///< ForwardPass::set_negative_prompt
    /// A sequence that was kept and begins as the prompt does is not decoded again, and is kept again afterwards.
    bool reuses_prefix = false;
    bool records = true;  ///< of the steps with HARP off too, where each costs an entropy

    [[nodiscard]] size_t n_sequences() const { return beams ? beams->beams : 1; }
};

/// @throws Error{invalid_option}, also for what does not go together and for more beams than the pass has sequences;
///         Error{invalid_input} if the prompt is empty or the context has no room for it and the answer
void validate(const Request & request, const ForwardPass & pass);

/// Tokens that each answer can have beside the prompt: beams share its cells, and need one of their own for all but the last.
[[nodiscard]] size_t room_for_answer(const Request & request, const ForwardPass & pass);

}  // namespace harp::decoding
