// The generation loop: prompt in, one token a step out. Knows nothing of HARP: that is a property of the forward pass.
#pragma once

#include <functional>
#include <vector>

#include "decoding/answer.h"
#include "decoding/drafter.h"
#include "harp/forward_pass.h"

namespace harp::decoding {

/// One sequence of a ForwardPass with a sampler on top; remembers its tokens, so that a prompt that begins as the last one
/// did is not decoded again.
class Generator {
  public:
    /// Called after each token. @return false to stop
    using OnToken = std::function<bool(const GeneratedToken &)>;
    /// Called during a long prompt: rows decoded, rows in all.
    using OnProgress = std::function<void(size_t done, size_t total)>;

    /// @param pass    made by harp_init_from_model, so that the sampler finds it by its context
    /// @param sampler borrowed; llama.cpp's common_sampler
    /// @param drafter borrowed; nullptr: no speculation. The text is the same with it and without.
    Generator(ForwardPass & pass, common_sampler & sampler, Drafter * drafter = nullptr);

    /// Brings the sequence to `tokens`, keeping the common prefix with what it holds; logits of the last one are ready.
    /// @return tokens decoded (the others were kept)
    /// @throws Error{invalid_input} if the prompt is empty or longer than the context; what ForwardPass::decode throws
    size_t set_prompt(const std::vector<llama_token> & tokens, const OnProgress & on_progress = {});

    /// Generates after set_prompt().
    /// @throws what ForwardPass::decode throws, except context_full and aborted, which end the generation
    GenerationResult generate(const GenerationLimits & limits, const OnToken & on_token);

    [[nodiscard]] const std::vector<llama_token> & tokens() const noexcept { return tokens_; }

  private:
    void decode_prompt(const llama_token * tokens, size_t n, bool last_is_output);
    size_t keep_common_prefix(const std::vector<llama_token> & tokens);
    GenerationResult run(const GenerationLimits & limits, const OnToken & on_token);
    void advance(llama_token token, size_t n_draft_max);
    void decode_with_draft(llama_token token, size_t n_draft_max);
    [[nodiscard]] size_t count_useful_rows() const;
    void resolve_draft();
    [[nodiscard]] size_t room_for_draft(const GenerationLimits & limits, int n_generated) const;

    ForwardPass & pass_;
    common_sampler & sampler_;
    Drafter * drafter_;
    llama_seq_id sequence_ = 0;
    std::vector<llama_token> tokens_;  // what the sequence holds for good
    std::vector<llama_token> draft_;   // decoded behind them, [n_confirmed_..) not yet confirmed
    size_t n_confirmed_ = 0;           // of draft_; these are in tokens_ too
    int32_t logits_row_ = -1;          // row of the last batch that the next token is sampled from
};

}  // namespace harp::decoding
