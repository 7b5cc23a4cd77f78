// A sequence of a ForwardPass and the request that it answers: what it holds, what of a batch is its, how a draft is confirmed.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "decoding/answer.h"
#include "decoding/drafter.h"
#include "decoding/feed.h"
#include "harp/forward_pass.h"

namespace harp::decoding {

/// What is to be answered, and how.
struct Request {
    std::vector<llama_token> prompt;
    GenerationLimits limits;
    Sampler sampler;
    std::optional<Options> options = std::nullopt;  ///< nullopt: those the sequence has; must be so with HARP off
    uint32_t mask_sequence = 0;                     ///< which of the seed's mask families
    std::vector<llama_token> negative_prompt = {};  ///< ForwardPass::set_negative_prompt
    /// A sequence that was kept and begins as the prompt does is not decoded again, and is kept again afterwards.
    bool reuses_prefix = false;
    bool records = true;  ///< of the steps with HARP off too, where each costs an entropy
};

class Slot {
  public:
    /// The sequence is empty.
    Slot(ForwardPass & pass, Drafter * drafter, llama_seq_id sequence);

    /// @name The sequence.
    /// @{
    /// Tokens that wait to be decoded.
    [[nodiscard]] size_t n_pending() const noexcept { return work_ ? work_->pending.size() : 0; }
    /// These, and those that it holds.
    [[nodiscard]] size_t n_cells() const noexcept { return tokens_.size() + n_pending(); }
    /// Of the prompt's tokens those that it holds already.
    [[nodiscard]] size_t common_prefix(const Request & request) const;
    /// Takes what was not confirmed of the latest draft out of it.
    void settle();
    void empty();
    /// @}

    /// @name The request.
    /// @{
    [[nodiscard]] bool is_free() const noexcept { return !work_; }
    [[nodiscard]] bool reads_prompt() const noexcept { return work_ && work_->answer.result().n_steps == 0; }
    [[nodiscard]] bool is_answering() const noexcept { return work_ && !reads_prompt(); }
    [[nodiscard]] size_t number() const { return work_->number; }
    [[nodiscard]] GenerationResult & result() { return work_->answer.result(); }
    void begin(size_t number, Request request);
    /// The slot is free from here on; the sequence stays where the request keeps prefixes. @return the request
    Request leave();
    /// @}

    /// @name A batch: draft(), add_rows(), and when it is decoded take_rows(), then sample().
    /// @{
    void draft(size_t n_max);
    /// @return whether there was one
    bool drop_draft();
    void add_rows(forward::BatchRows & rows, Room & room);
    void take_rows();
    /// The batch was not decoded.
    void forget_rows() noexcept;
    [[nodiscard]] size_t n_rows() const noexcept { return work_ ? work_->n_rows : 0; }
    /// Whether tokens are to be sampled from the latest batch.
    [[nodiscard]] bool has_row() const noexcept { return work_ && work_->row >= 0; }
    [[nodiscard]] size_t n_outputs() const noexcept { return has_row() ? 1 + work_->n_draft : 0; }
    [[nodiscard]] size_t count_useful_rows() const;
    /// Samples behind the rows just decoded: one token, and more where they confirm a draft.
    /// @return why the answer ends here
    [[nodiscard]] std::optional<StopReason> sample(const std::function<bool(const GeneratedToken &)> & on_token);
    /// @}

  private:
    struct Work {
        size_t number;
        Request asked;
        Answer answer;
        std::vector<llama_token>
            pending;         // to be decoded: of the prompt, or the token sampled last and a draft behind it
        size_t n_draft = 0;  // of pending, the last
        size_t n_rows = 0;   // of the latest batch
        int32_t row = -1;    // of the latest batch that is to be sampled from; -1: none
    };

    ForwardPass * pass_;
    Drafter * drafter_;
    llama_seq_id sequence_;
    std::vector<llama_token> tokens_;  // that the sequence holds for good
    size_t n_drafted_ = 0;             // decoded behind them in the latest batch, until settle()
    size_t n_confirmed_ = 0;           // of these; they are in tokens_ too
    std::optional<Work> work_;
};

}  // namespace harp::decoding
