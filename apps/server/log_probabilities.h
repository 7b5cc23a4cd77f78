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

/// Characters that begin in `text`.
[[nodiscard]] size_t count_characters(const std::string & text);

/// The text that was tokenized, control tokens by their names: without the space that SentencePiece puts before it.
[[nodiscard]] std::string text_of(const llama_vocab & vocab, const std::vector<llama_token> & tokens);

/// A token of a prompt or an answer with its log-probability.
struct LegacyEntry {
    llama_token id = 0;
    std::string text;         ///< bytes: it may be a part of a character
    size_t n_characters = 0;  ///< that begin before it, in prompt and answer
    std::optional<double> logprob;
    std::vector<Candidate> top;
    std::optional<StepRecord> step;
    std::vector<Candidate> vanilla;  ///< most probable tokens without HARP; empty where no second pass was mixed
};

/// Log-probabilities in the shape of OpenAI's older completions: {"tokens", "token_logprobs", "top_logprobs", "text_offset"}, where
/// HARP is on also {"entropy", "hesitated"}, where a second pass was mixed {"vanilla_top_logprobs"}; lists of the same length, what
/// is unknown null. An offset is that of the character in which the token begins. Candidates hold the token itself, except where
/// none were asked for.
[[nodiscard]] common_json legacy_logprobs(const std::vector<LegacyEntry> & entries);

/// Output rows of echoed prompts that one batch may hold; it bounds the memory for logits.
constexpr int32_t echo_rows_per_batch = 64;

/// A prompt that is sent back with the log-probabilities of its own tokens. The first one has no predecessor, so none.
class PromptEcho {
  public:
    PromptEcho() = default;
    PromptEcho(const llama_vocab & vocab, const std::vector<llama_token> & prompt, size_t n_top);

    /// Row `row` of the last batch is the prompt's next one: it predicts the token after it. The last one predicts nothing here.
    /// @return its step; nullopt without HARP
    std::optional<StepRecord> add_row(llama_context * context, int32_t row);

    /// The prompt as it was given: without what the vocabulary adds by itself, a begin-of-sequence token and SentencePiece's space.
    [[nodiscard]] const std::string & text() const noexcept { return text_; }
    [[nodiscard]] size_t n_characters() const { return count_characters(text_); }
    [[nodiscard]] const std::vector<LegacyEntry> & entries() const noexcept { return entries_; }

  private:
    size_t n_rows_ = 0;  // rows seen
    size_t n_top_ = 0;
    std::string text_;
    std::vector<LegacyEntry> entries_;
};

}  // namespace harp::server
