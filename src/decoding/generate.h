// The generation loop: prompts in, tokens out, a batch at a time; one answer or many at once, sampled or searched by beams, in
// one batch. Knows nothing of HARP: that is a property of the forward pass.
#pragma once

#include <deque>
#include <functional>
#include <utility>
#include <vector>

#include "decoding/slot.h"

namespace harp::decoding {

/// The answers of a pass's sequences. Requests wait in a queue; each sequence works at one.
///
///   sequence 0   [prompt of request 0......] a  b  c  end | [prompt of request 3..
///   sequence 1   [prompt of request 1] d  e  f  g  h  i ...
///   sequence 2   [prompt of request 2..........................       a batch: a column of rows
class Generator {
  public:
    struct Events {
        /// Called at each token that is sampled. @return false to end its answer
        std::function<bool(size_t request, const GeneratedToken & token)> on_token = {};
        /// Called at each end.
        std::function<void(size_t request, const GenerationResult & result)> on_result = {};
        /// Called after each batch with rows of a prompt: how many are decoded, of those that the sequence did not hold.
        std::function<void(size_t request, size_t done, size_t total)> on_prompt = {};
        /// Called after each step of a beam search. @return false to end it
        std::function<bool(size_t request, const BeamSearch & search)> on_step = {};
    };

    /// Takes over all of the pass's sequences, and empties its memory.
    /// @param drafter borrowed, for all of the pass's sequences; nullptr: no speculation. The text is the same with it and
    ///                without.
    explicit Generator(ForwardPass & pass, Drafter * drafter = nullptr);

    /// Queues a request. It begins when as many sequences are free as it needs and the context has room for its prompt beside
    /// the others.
    /// @return its number: 0, 1, ...
    /// @throws what validate() throws; Error{unsupported_call} for beams with a drafter
    size_t submit(Request request);
    /// Takes a request out, waiting or begun; its result is not reported. No-op if it has ended.
    void cancel(size_t request);
    [[nodiscard]] bool is_idle() const noexcept;

    /// Decodes one batch and samples the tokens it gives. No-op when idle. Where the context is full the request that came
    /// last goes: it waits once more if it has no token yet, else it ends.
    /// @throws what ForwardPass::decode throws, except context_full; nothing of the batch stays behind, the requests stay as
    ///         they were
    void next_batch(const Events & events);

    /// Answers a request while nothing else is under way.
    /// @throws as submit() and next_batch(), except aborted behind the first step, which ends the answer; what the callbacks throw
    GenerationResult answer(Request request, Events events);
    /// The same of a sampled answer, with callbacks that are not told its number.
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
    forward::BatchRows rows_;  // of the latest batch
};

}  // namespace harp::decoding
