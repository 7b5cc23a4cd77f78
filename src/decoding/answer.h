// A request under way: its answer as it grows, by samples or by steps of a beam search, and why it ends.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "decoding/request.h"

namespace harp::decoding {

struct GeneratedToken {
    llama_token id = 0;
    std::string piece;       ///< bytes of the token; may end inside a UTF-8 character
    llama_pos position = 0;  ///< it will take
    StepRecord record;       ///< of the step that chose it
};

enum class StopReason {
    end_of_text,   ///< the model chose an end token (not reported, not part of the text), or the search is decided
    stop_string,   ///< one of the stop strings is in the text
    length,        ///< n_predict tokens
    context_full,  ///< no room for another token
    interrupted,   ///< the callback or the abort callback said stop
};
[[nodiscard]] const char * to_string(StopReason reason) noexcept;

struct GenerationResult {
    StopReason reason = StopReason::length;
    std::string text;  ///< of the generated tokens, stop string and what its last token has behind it included
    int n_generated = 0;
    int n_steps = 0;            ///< tokens sampled, the end token included; of a beam search its steps
    int n_hesitations = 0;      ///< of these steps; of a beam search those of all its beams
    size_t n_prompt = 0;        ///< tokens of the prompt that were decoded; the others the sequence held already
    size_t n_rows = 0;          ///< decoded behind the prompt, drafts included
    double prompt_seconds = 0;  ///< of the prompt's batches its share, by rows; of a beam search the twins' reading too
    double seconds = 0;         ///< from there to the last token, of batches likewise its share
    std::vector<Hypothesis> hypotheses;  ///< of a beam search, best first, at most `beams`; text is that of the best
};

class Answer {
  public:
    /// Behind the request's prompt.
    Answer(ForwardPass & pass, size_t number, Request request);

    [[nodiscard]] size_t number() const noexcept { return number_; }
    [[nodiscard]] Request & request() noexcept { return request_; }
    [[nodiscard]] const GenerationLimits & limits() const noexcept { return request_.limits; }
    [[nodiscard]] GenerationResult & result() noexcept { return result_; }  ///< prompt, rows, seconds: the loop's

    /// Why it may not go on; nullopt: it may.
    [[nodiscard]] std::optional<StopReason> stop_reason() const;
    /// The result of an answer that ends here.
    [[nodiscard]] GenerationResult finish(StopReason reason);

    /// Samples the token that follows `row` of the pass's last batch, and takes it into the text.
    /// @param position that the token will take
    /// @return nullopt if the model chose to end
    [[nodiscard]] std::optional<GeneratedToken> sample(int32_t row, llama_pos position);
    /// How many rows from `row` on are of use, of one that is followed by those of a draft: samples ahead, with the logits as
    /// they are now. Rows behind the first token that differs from the draft will be taken back.
    [[nodiscard]] size_t count_useful_rows(int32_t row, std::span<const llama_token> draft) const;

    /// Which sequence holds each running beam, or, sampled or before the first step, the one answer.
    [[nodiscard]] std::vector<llama_seq_id> & beams() noexcept { return beams_; }
    /// nullptr if the answer is sampled.
    [[nodiscard]] const BeamSearch * search() const noexcept { return search_ ? &*search_ : nullptr; }
    /// A step of the search.
    /// @param rows [running beams] of the pass's last batch
    const std::vector<BeamSearch::Branch> & advance(std::span<const int32_t> rows);

  private:
    [[nodiscard]] std::span<const float> logits(int32_t row) const;
    [[nodiscard]] StepRecord record(int32_t row);
    [[nodiscard]] std::string piece(llama_token token) const;

    ForwardPass & pass_;
    size_t number_;
    Request request_;
    std::optional<Sampler> sampler_;  // the request's stays as it is, to begin once more
    std::optional<BeamSearch> search_;
    std::vector<llama_seq_id> beams_;
    bool has_stop_string_ = false;
    GenerationResult result_;
};

}  // namespace harp::decoding
