// Log-probabilities as answers give them: the most probable tokens of a row, and those of a prompt that is echoed.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "harp/forward_pass.h"
#include "json.h"

namespace harp::server {

struct Candidate {
    llama_token id = 0;
    std::string text;
    double logprob = 0;  ///< natural logarithm
};

/// The `n` most probable tokens of a row, the most probable first.
[[nodiscard]] std::vector<Candidate> most_probable(const llama_vocab & vocab, std::span<const float> logits, size_t n);

/// Output rows of echoed prompts that one batch may hold; it bounds the memory for logits.
constexpr int32_t echo_rows_per_batch = 64;

/// A prompt that is sent back with the log-probabilities of its own tokens, in the shape of OpenAI's older completions:
/// {"tokens", "token_logprobs", "top_logprobs", "text_offset"}, where HARP is on also {"entropy", "hesitated"}; lists of the
/// same length, what is unknown (the first token has no predecessor) null.
class PromptEcho {
  public:
    PromptEcho() = default;
    PromptEcho(const llama_vocab & vocab, const std::vector<llama_token> & prompt, size_t n_top);

    /// Row `row` of the last batch is the prompt's next one: it predicts the token after it. The last one predicts nothing here.
    /// @return its step; nullopt without HARP
    std::optional<StepRecord> add_row(llama_context * context, int32_t row);

    /// A token that was generated after the prompt.
    void add_generated(const std::string & text, double logprob, const std::vector<Candidate> & top,
                       const std::optional<StepRecord> & step);

    /// The prompt as text: its tokens without a begin-of-sequence token that the vocabulary adds by itself.
    [[nodiscard]] const std::string & text() const noexcept { return text_; }
    [[nodiscard]] common_json logprobs() const;

  private:
    struct Entry {
        std::string token;
        size_t text_offset = 0;  // in characters
        std::optional<double> logprob;
        std::vector<Candidate> top;
        std::optional<StepRecord> step;
    };
    /// @param shown what the text has of it
    Entry & append(const std::string & token, const std::string & shown);

    std::vector<llama_token> prompt_;
    size_t n_rows_ = 0;  // rows seen
    size_t n_top_ = 0;
    std::string text_;
    size_t text_end_ = 0;  // characters of all entries so far
    std::vector<Entry> entries_;
};

}  // namespace harp::server
