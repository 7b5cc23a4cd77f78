// One answer as it grows: draws its tokens, and knows when it ends. The part that all generation loops share.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "harp/forward_pass.h"

struct common_sampler;

namespace harp::decoding {

struct GeneratedToken {
    llama_token id = 0;
    std::string piece;       ///< bytes of the token; may end inside a UTF-8 character
    llama_pos position = 0;  ///< it will take
    StepRecord record;       ///< of the step that chose it
};

enum class StopReason {
    end_of_text,   ///< the model chose an end-of-generation token (not reported, not part of the text)
    stop_string,   ///< one of the stop strings is in the text
    length,        ///< n_predict tokens
    context_full,  ///< no room for another token
    interrupted,   ///< the callback or the abort callback said stop
};
[[nodiscard]] const char * to_string(StopReason reason) noexcept;

struct GenerationLimits {
    int n_predict = -1;                     ///< tokens; negative: until the model ends or the context is full
    std::vector<std::string> stop_strings;  ///< generation ends once the text holds one of them
};

struct GenerationResult {
    StopReason reason = StopReason::length;
    std::string text;  ///< of the generated tokens, stop string and what its last token has behind it included
    int n_generated = 0;
    int n_steps = 0;        ///< tokens drawn, the end token included
    int n_hesitations = 0;  ///< of these steps
    double seconds = 0;     ///< from the first sampled token to the last, without the prompt
};

/// @throws Error{invalid_input} if a prompt is empty, or leaves no room in the context for a token
void check_prompt(const ForwardPass & pass, const std::vector<llama_token> & prompt);

/// Begins a sampler anew behind a prompt.
void accept_prompt(common_sampler & sampler, const std::vector<llama_token> & prompt);

class Answer {
  public:
    /// @param sampler borrowed; has accepted the prompt
    Answer(ForwardPass & pass, common_sampler & sampler, GenerationLimits limits);

    /// Why no further token may be drawn; nullopt: one may.
    [[nodiscard]] std::optional<StopReason> stop_reason() const;
    /// Draws the token that follows `row` of the pass's last batch, and takes it into the text.
    /// @param position that the token will take
    /// @return nullopt if the model chose to end
    [[nodiscard]] std::optional<GeneratedToken> draw(ForwardPass & pass, int32_t row, llama_pos position);

    [[nodiscard]] const GenerationLimits & limits() const noexcept { return limits_; }
    [[nodiscard]] const GenerationResult & result() const noexcept { return result_; }

  private:
    common_sampler * sampler_;
    const llama_vocab * vocab_;
    GenerationLimits limits_;
    bool has_stop_string_ = false;
    GenerationResult result_;  // its reason and seconds are the loop's to fill in
};

}  // namespace harp::decoding
