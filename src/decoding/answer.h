// A request in progress: its answer as it grows, by sampling or by steps of a beam search, and why it ends.
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
    llama_pos position = 0;  ///< that the token will take
    StepRecord record;       ///< of the step that chose it
};

enum class StopReason {
    end_of_text,   ///< the model chose an end token (not reported, not part of the text), or the search is decided
    stop_string,   ///< one of the stop strings is in the text
    length,        ///< n_predict tokens
    context_full,  ///< there is no room for another token
    interrupted,   ///< the callback or the abort callback said stop
};
[[nodiscard]] const char * to_string(StopReason reason) noexcept;

struct GenerationResult {
    StopReason reason = StopReason::length;
    std::string text;  ///< of all generated tokens, with the stop string and the rest of its last token
    int n_generated = 0;
    int n_steps = 0;            ///< sampled tokens, including an end token; in a beam search its steps
    int n_hesitations = 0;      ///< among these steps; in a beam search those of all beams
    size_t n_prompt = 0;        ///< tokens of the prompt that were decoded; the sequence already held the others
    size_t n_rows = 0;          ///< rows decoded after the prompt, including drafts
    double prompt_seconds = 0;  ///< share, by rows, of the prompt's batches; in a beam search also the twins' reading
    double seconds = 0;         ///< from there to the last token, again by share of the batches
    std::vector<Hypothesis> hypotheses;  ///< of a beam search, best first, at most `beams`; `text` is the best one's
};

class Answer {
  public:
    /// An answer to the request's prompt, with nothing generated yet.
    Answer(ForwardPass & pass, size_t number, Request request);

    [[nodiscard]] size_t number() const noexcept { return number_; }
    [[nodiscard]] Request & request() noexcept { return request_; }
    [[nodiscard]] const GenerationLimits & limits() const noexcept { return request_.limits; }
    [[nodiscard]] GenerationResult & result() noexcept { return result_; }  ///< the loop sets prompt, rows, seconds

    /// Why the answer has to end; nullopt: it can go on.
    [[nodiscard]] std::optional<StopReason> stop_reason() const;
    /// The result of an answer that ends here.
    [[nodiscard]] GenerationResult finish(StopReason reason);

    /// Samples the token that follows `row` of the pass's last batch, and appends it to the text.
    /// @param position the position that the token will take
    /// @return nullopt if the model chose to end
    [[nodiscard]] std::optional<GeneratedToken> sample(int32_t row, llama_pos position);
    /// How many rows are useful, of `row` and the draft's rows after it. Samples ahead from the logits as they are now;
    /// rows after the first sample that differs from the draft will be taken back.
    [[nodiscard]] size_t count_useful_rows(int32_t row, std::span<const llama_token> draft) const;

    /// The sequence of each running beam; when sampling, or before the first step, the answer's one sequence.
    [[nodiscard]] std::vector<llama_seq_id> & beams() noexcept { return beams_; }
    /// nullptr if the answer is sampled, not searched.
    [[nodiscard]] const BeamSearch * search() const noexcept { return search_ ? &*search_ : nullptr; }
    /// Takes a step of the search.
    /// @param rows [running beams] of the pass's last batch
    const std::vector<BeamSearch::Branch> & advance(std::span<const int32_t> rows);

  private:
    [[nodiscard]] std::span<const float> logits(int32_t row) const;
    [[nodiscard]] StepRecord record(int32_t row);
    [[nodiscard]] std::string piece(llama_token token) const;

    ForwardPass & pass_;
    size_t number_;
    Request request_;
    std::optional<Sampler> sampler_;  // a clone: the request's stays unchanged, for starting again
    std::optional<BeamSearch> search_;
    std::vector<llama_seq_id> beams_;
    bool has_stop_string_ = false;
    GenerationResult result_;
};

}  // namespace harp::decoding
