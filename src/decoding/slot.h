// A sequence of a ForwardPass and the answer that grows in it: what it holds, what of a batch is its, how a draft is confirmed.
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
    /// The sequence is empty.
    Slot(ForwardPass & pass, Drafter * drafter, llama_seq_id sequence);

    /// @name The sequence.
    /// @{
    [[nodiscard]] llama_seq_id sequence() const noexcept { return sequence_; }
    /// Tokens that wait to be decoded.
    [[nodiscard]] size_t n_pending() const noexcept { return pending_.size(); }
    /// These, and those that it holds.
    [[nodiscard]] size_t n_cells() const noexcept { return tokens_.size() + n_pending(); }
    /// Of the prompt's tokens those that it holds already.
    [[nodiscard]] size_t common_prefix(const Request & request) const;
    /// Takes what was not confirmed of the latest draft out of it.
    void settle();
    void empty();
    /// @}

    /// @name The answer. That of a beam search is in a slot for each beam.
    /// @{
    [[nodiscard]] bool is_free() const noexcept { return !answer_; }
    [[nodiscard]] bool reads_prompt() const { return answer_ && answer_->result().n_steps == 0; }
    [[nodiscard]] bool is_answering() const { return answer_ && !reads_prompt(); }
    [[nodiscard]] Answer & answer() const { return *answer_; }
    [[nodiscard]] bool is_at(size_t number) const noexcept { return answer_ && answer_->number() == number; }
    void begin(size_t number, Request request);
    /// Is empty, until a beam of the other's search is put here.
    void join(const Slot & other);
    /// Becomes a copy of a beam, without what is pending there.
    void copy(const Slot & beam);
    /// The token that the next batch decodes.
    void push(llama_token token) { pending_ = {token}; }
    /// The slot is free from here on; the sequence stays where the request keeps prefixes.
    std::shared_ptr<Answer> leave();
    /// @}

    /// @name A batch: draft(), add_rows(), and when it is decoded take_rows(), then sample().
    /// @{
    void draft(size_t n_max);
    /// @return whether there was one
    bool drop_draft();
    void add_rows(forward::BatchRows & rows, Room & room);
    void take_rows();
    [[nodiscard]] size_t n_rows() const noexcept { return n_rows_; }
    /// Whether a token is to be chosen behind a row of the latest batch.
    [[nodiscard]] bool has_row() const noexcept { return row_ >= 0; }
    /// This row; the slot has it no longer. Also where the batch was not decoded.
    int32_t take_row() noexcept { return std::exchange(row_, -1); }
    [[nodiscard]] size_t n_outputs() const noexcept { return has_row() ? 1 + n_draft_ : 0; }
    [[nodiscard]] size_t count_useful_rows() const;
    /// Samples behind the rows just decoded: one token, and more where they confirm a draft.
    /// @return why the answer ends here
    [[nodiscard]] std::optional<StopReason> sample(const std::function<bool(const GeneratedToken &)> & on_token);
    /// @}

  private:
    ForwardPass * pass_;
    Drafter * drafter_;
    llama_seq_id sequence_;
    std::vector<llama_token> tokens_;   // that the sequence holds for good
    size_t n_drafted_ = 0;              // decoded behind them in the latest batch, until settle()
    size_t n_confirmed_ = 0;            // of these; they are in tokens_ too
    std::shared_ptr<Answer> answer_;    // null: the slot is free
    std::vector<llama_token> pending_;  // to be decoded: of the prompt, or the token chosen last and a draft behind it
    size_t n_draft_ = 0;                // of pending_, the last
    size_t n_rows_ = 0;                 // of the latest batch
    int32_t row_ = -1;                  // of the latest batch, behind which a token is to be chosen; -1: none
};

}  // namespace harp::decoding
