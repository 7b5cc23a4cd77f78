// Chooses tokens from logits: llama.cpp's chain of samplers, as its flags describe it, with an optional grammar.
//
// llama.cpp's common_sampler reads the logits of a llama_context. This one is given logits, those of a ForwardPass.
#pragma once

#include <span>
#include <vector>

#include "llama-cpp.h"

struct common_params_sampling;

namespace harp::decoding {

class Sampler {
  public:
    /// @throws std::exception saying which setting is impossible; llama.cpp prints what is wrong with a grammar
    Sampler(const llama_model & model, common_params_sampling params);

    /// An independent copy that continues from here, with the same random numbers.
    [[nodiscard]] Sampler clone() const;
    /// Begins anew after a prompt.
    void begin(std::span<const llama_token> prompt);
    /// @param logits [n_vocab]
    [[nodiscard]] llama_token sample(std::span<const float> logits);
    void accept(llama_token token);

  private:
    Sampler(llama_sampler_ptr chain, llama_sampler_ptr grammar, llama_token end, bool is_greedy);
    [[nodiscard]] bool is_allowed(llama_token token) const;
    llama_token choose(std::span<const float> logits, bool under_grammar);

    llama_sampler_ptr chain_;
    llama_sampler_ptr grammar_;  // null if there is no grammar
    llama_token end_;            // of a text, LLAMA_TOKEN_NULL if the vocabulary has none
    bool is_greedy_;             // the chain always takes the most probable token
    std::vector<llama_token_data> candidates_;
};

}  // namespace harp::decoding
