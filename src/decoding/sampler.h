// Chooses tokens from logits: llama.cpp's chain of samplers, as its flags describe it, under a grammar.
//
// llama.cpp's common_sampler reads the logits of a llama_context; these are given theirs, those of a ForwardPass.
#pragma once

#include <span>
#include <vector>

#include "llama-cpp.h"

struct common_params_sampling;

namespace harp::decoding {

class Sampler {
  public:
    /// @throws std::exception saying which setting cannot be had; llama.cpp prints what is wrong with a grammar
    Sampler(const llama_model & model, common_params_sampling params);

    /// One that goes on from here by itself, with the same random numbers.
    [[nodiscard]] Sampler clone() const;
    /// Begins anew behind a prompt.
    void begin(std::span<const llama_token> prompt);
    /// @param logits [n_vocab]
    [[nodiscard]] llama_token sample(std::span<const float> logits);
    void accept(llama_token token);

  private:
    Sampler(llama_sampler_ptr chain, llama_sampler_ptr grammar, bool is_greedy);
    llama_token choose(std::span<const float> logits, bool under_grammar);

    llama_sampler_ptr chain_;
    llama_sampler_ptr grammar_;  // null: none
    bool is_greedy_;             // the chain takes the most probable token, whatever came before
    std::vector<llama_token_data> candidates_;
};

}  // namespace harp::decoding
