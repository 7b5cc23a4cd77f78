// One answer as it grows: samples its tokens, and knows when it ends.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "decoding/sampler.h"
#include "harp/forward_pass.h"

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
    int n_steps = 0;            ///< tokens sampled, the end token included
    int n_hesitations = 0;      ///< of these steps
    size_t n_prompt = 0;        ///< tokens of the prompt that were decoded; the others the sequence held already
    double prompt_seconds = 0;  ///< of the prompt's batches its share, by rows
    double seconds = 0;         ///< from there to the last token, of batches likewise its share
};

class Answer {
  public:
    /// @param sampler has accepted the prompt
    /// @param records whether steps are recorded with HARP off too, where each costs an entropy
    Answer(ForwardPass & pass, Sampler sampler, GenerationLimits limits, bool records);

    /// Why no further token may be sampled; nullopt: one may.
    [[nodiscard]] std::optional<StopReason> stop_reason() const;
    /// Samples the token that follows `row` of the pass's last batch, and takes it into the text.
    /// @param position that the token will take
    /// @return nullopt if the model chose to end
    [[nodiscard]] std::optional<GeneratedToken> sample(ForwardPass & pass, int32_t row, llama_pos position);
    /// How many rows from `row` on are of use, of one that is followed by those of a draft: samples ahead, with the logits as
    /// they are now. Rows behind the first token that differs from the draft will be taken back.
    [[nodiscard]] size_t count_useful_rows(ForwardPass & pass, int32_t row, std::span<const llama_token> draft) const;

    [[nodiscard]] const GenerationLimits & limits() const noexcept { return limits_; }
    [[nodiscard]] const GenerationResult & result() const noexcept { return result_; }
    [[nodiscard]] GenerationResult & result() noexcept { return result_; }  ///< reason, prompt, seconds: the loop's

  private:
    Sampler sampler_;
    const llama_vocab * vocab_;
    GenerationLimits limits_;
    bool records_;
    bool has_stop_string_ = false;
    GenerationResult result_;
};

}  // namespace harp::decoding
