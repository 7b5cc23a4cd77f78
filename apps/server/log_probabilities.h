// Log-probabilities in answers: the most probable tokens of a row, and those of an echoed prompt.
//
// patches/server-prompt-echo.patch and others call this.
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

/// Number of characters that begin in `text`.
[[nodiscard]] size_t count_characters(const std::string & text);

/// The text that was tokenized, control tokens by name, without the space that SentencePiece puts before it.
[[nodiscard]] std::string text_of(const llama_vocab & vocab, const std::vector<llama_token> & tokens);

/// A token of a prompt or an answer with its log-probability.
struct LegacyEntry {
    llama_token id = 0;
    std::string text;         ///< bytes, possibly part of a character
    size_t n_characters = 0;  ///< characters that begin before it, in prompt and answer
    std::optional<double> logprob;
    std::vector<Candidate> top;
    std::optional<StepRecord> step;
    /// Most probable tokens without HARP; empty if no second pass was mixed, nullopt if they were not asked for.
    std::optional<std::vector<Candidate>> vanilla;
};

/// Log-probabilities in the form of OpenAI's older completions: {"tokens", "token_logprobs", "top_logprobs",
/// "text_offset"}; with HARP on also {"entropy", "hesitated"}, and if candidates were asked for
/// {"vanilla_top_logprobs"}. The lists have the same length, with null where nothing is known. An offset is that of the
/// character in which the token begins. Candidates include the token itself, unless none were asked for.
[[nodiscard]] common_json legacy_logprobs(const std::vector<LegacyEntry> & entries);

/// Output rows of echoed prompts that one batch may hold; it bounds the memory for logits.
constexpr int32_t echo_rows_per_batch = 64;

/// A prompt that is sent back with its own tokens' log-probabilities. The first token has none, since nothing predicts
/// it.
class PromptEcho {
  public:
    PromptEcho() = default;
    PromptEcho(const llama_vocab & vocab, const std::vector<llama_token> & prompt, size_t n_top);

    /// Takes row `row` of the last batch as the prompt's next row, which predicts the token after it. (The prompt's
    /// last row predicts nothing here.)
    /// @return the row's step; nullopt without HARP
    std::optional<StepRecord> add_row(llama_context * context, int32_t row);

    /// The prompt as it was given, without a begin-of-sequence token or SentencePiece's space that the vocabulary
    /// added.
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
