// A sequence of a ForwardPass and the answer that grows in it: its tokens, its rows in a batch, the confirmation of a
// draft.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "decoding/answer.h"
#include "decoding/drafter.h"
#include "decoding/feed.h"
#include "harp/forward_pass.h"

namespace harp::decoding {

class Slot {
  public:
    /// Expects an empty sequence.
    Slot(ForwardPass & pass, Drafter * drafter, llama_seq_id sequence);

    /// @name The sequence.
    /// @{
    [[nodiscard]] llama_seq_id sequence() const noexcept { return sequence_; }
    /// Tokens waiting to be decoded.
    [[nodiscard]] size_t n_pending() const noexcept { return pending_.size(); }
    /// Tokens waiting and tokens held.
    [[nodiscard]] size_t n_cells() const noexcept { return tokens_.size() + n_pending(); }
    /// Number of the prompt's tokens that the sequence already holds.
    [[nodiscard]] size_t common_prefix(const Request & request) const;
    /// Removes the unconfirmed tokens of the latest draft from the sequence.
    void settle();
    void empty();
    /// @}

    /// @name The answer. A beam search has a slot for each beam.
    /// @{
    [[nodiscard]] bool is_free() const noexcept { return !answer_; }
    [[nodiscard]] bool reads_prompt() const { return answer_ && answer_->result().n_steps == 0; }
    [[nodiscard]] bool is_answering() const { return answer_ && !reads_prompt(); }
    [[nodiscard]] Answer & answer() const { return *answer_; }
    [[nodiscard]] bool is_at(size_t number) const noexcept { return answer_ && answer_->number() == number; }
    void begin(size_t number, Request request);
    /// Joins the other slot's beam search, with an empty sequence until a beam is put here.
    void join(const Slot & other);
    /// Becomes a copy of a beam, without its pending tokens.
    void copy(const Slot & beam);
    /// Sets the token that the next batch decodes.
    void push(llama_token token) { pending_ = {token}; }
    /// Frees the slot. The sequence is emptied unless the request keeps prefixes.
    std::shared_ptr<Answer> leave();
    /// @}

    /// @name A batch: draft(), add_rows(); after the decode take_rows(), then sample().
    /// @{
    void draft(size_t n_max);
    /// @return whether there was a draft
    bool drop_draft();
    void add_rows(forward::BatchRows & rows, Room & room);
    void take_rows();
    [[nodiscard]] size_t n_rows() const noexcept { return n_rows_; }
    /// Whether the latest batch has a row of this slot that a token is to be sampled after.
    [[nodiscard]] bool has_row() const noexcept { return row_ >= 0; }
    /// Returns that row and forgets it. Also used to forget it when the batch was not decoded.
    int32_t take_row() noexcept { return std::exchange(row_, -1); }
    [[nodiscard]] size_t n_outputs() const noexcept { return has_row() ? 1 + n_draft_ : 0; }
    [[nodiscard]] size_t count_useful_rows() const;
    /// Samples after the rows just decoded: one token, and one more for each token of the draft that is confirmed.
    /// @return why the answer ends here
    [[nodiscard]] std::optional<StopReason> sample(const std::function<bool(const GeneratedToken &)> & on_token);
    /// @}

  private:
    ForwardPass * pass_;
    Drafter * drafter_;
    llama_seq_id sequence_;
    std::vector<llama_token> tokens_;   // that the sequence holds and keeps
    size_t n_drafted_ = 0;              // draft tokens decoded after them in the latest batch, until settle()
    size_t n_confirmed_ = 0;            // of these, the confirmed ones, which are in tokens_ too
    std::shared_ptr<Answer> answer_;    // null: the slot is free
    std::vector<llama_token> pending_;  // to be decoded: prompt, or the latest token and then its draft
    size_t n_draft_ = 0;                // how many of pending_, at its end, are a draft
    size_t n_rows_ = 0;                 // in the latest batch
    int32_t row_ = -1;                  // row of the latest batch to sample after; -1: none
};

}  // namespace harp::decoding
