// The generation loop: prompts in, tokens out, one batch at a time. It works on one answer or many at once, sampled or
// searched by beams, all in the same batch. Of HARP it only hands down a request's options and where its prompt ends; the
// rest is the forward pass's.
#pragma once

#include <deque>
#include <functional>
#include <utility>
#include <vector>

#include "decoding/slot.h"

namespace harp::decoding {

/// Answers requests in a pass's sequences. Requests wait in a queue; each sequence works on one at a time.
///
///   sequence 0   [prompt of request 0......] a  b  c  end | [prompt of request 3..
///   sequence 1   [prompt of request 1] d  e  f  g  h  i ...
///   sequence 2   [prompt of request 2..........................       a column is a batch
class Generator {
  public:
    struct Events {
        /// Called for each sampled token. @return false to end its answer
        std::function<bool(size_t request, const GeneratedToken & token)> on_token = {};
        /// Called at the end of each answer.
        std::function<void(size_t request, const GenerationResult & result)> on_result = {};
        /// Called after each batch with rows of a prompt: `done` of the `total` tokens that the sequence did not hold.
        std::function<void(size_t request, size_t done, size_t total)> on_prompt = {};
        /// Called after each step of a beam search. @return false to end it
        std::function<bool(size_t request, const BeamSearch & search)> on_step = {};
    };

    /// Takes over all of the pass's sequences, and empties its memory.
    /// @param drafter borrowed, for all of the pass's sequences; nullptr: no speculation. It does not change the text.
    explicit Generator(ForwardPass & pass, Drafter * drafter = nullptr);

    /// Queues a request. It begins when enough sequences are free and its prompt fits into the context beside the other
    /// requests.
    /// @return its number: 0, 1, ...
    /// @throws what validate() throws; Error{unsupported_call} for beams with a drafter
    size_t submit(Request request);
    /// Removes a request, waiting or begun, without reporting a result. No-op if it has ended.
    void cancel(size_t request);
    [[nodiscard]] bool is_idle() const noexcept;

    /// Decodes one batch and samples from its output rows. No-op when idle. If the context is full, room is
    /// made: first drafts go, then kept prefixes, then the latest request. It waits again if it has no token yet and
    /// others are in progress; otherwise it ends.
    /// @throws what ForwardPass::decode throws, except context_full; nothing of the batch stays, and the requests are
    ///         as before
    void next_batch(const Events & events);

    /// Answers one request; no other may be in progress.
    /// @throws what submit() and next_batch() throw, except aborted after the first step, which ends the answer; what
    ///         the callbacks throw
    GenerationResult answer(Request request, Events events);
    /// The same for a sampled answer, with callbacks that do not get its number.
    GenerationResult answer(Request request, const std::function<bool(const GeneratedToken &)> & on_token,
                            const std::function<void(size_t done, size_t total)> & on_prompt = {});

  private:
    [[nodiscard]] Slot & slot_of(llama_seq_id sequence) { return slots_[static_cast<size_t>(sequence)]; }
    [[nodiscard]] size_t n_cells(bool of_free_slots) const;
    [[nodiscard]] std::vector<Slot *> free_slots(const Request & request);
    void begin_waiting();
    std::shared_ptr<Answer> release(size_t number);
    void end(const Slot & slot, StopReason reason, const Events & events);
    std::optional<StopReason> search(Answer & answer, const Events & events);
    void follow(Answer & answer, const std::vector<BeamSearch::Branch> & branches);
    void decode(const Events & events);
    void draft();
    void decode_batch();
    [[nodiscard]] size_t count_useful_rows() const;
    bool make_room(const Events & events);

    ForwardPass & pass_;
    Drafter * drafter_;
    size_t n_submitted_ = 0;
    std::deque<std::pair<size_t, Request>> waiting_;
    std::vector<Slot> slots_;  // [sequence]
    forward::BatchRows rows_;  // the latest batch
};

}  // namespace harp::decoding
