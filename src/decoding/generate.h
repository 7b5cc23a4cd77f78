// The generation loop: prompts in, tokens out, a step at a time; one answer or many at once, in one batch. Knows nothing of
// HARP: that is a property of the forward pass.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <utility>
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
    /// A sequence that was kept and begins as the prompt does is not decoded again, and is kept again afterwards.
    bool reuses_prefix = false;
    bool records = true;  ///< of the steps with HARP off too, where each costs an entropy
};

/// Called at each token. @return false to end its answer
using OnToken = std::function<bool(size_t request, const GeneratedToken & token)>;
/// Called at each end.
using OnResult = std::function<void(size_t request, const GenerationResult & result)>;
/// Called after each batch with rows of a prompt: how many are decoded, of those that the sequence did not hold.
using OnPrompt = std::function<void(size_t request, size_t done, size_t total)>;

/// The answers of a pass's sequences. Requests wait in a queue; each sequence works at one; each step is one batch.
///
///   sequence 0   [prompt of request 0......] a  b  c  end | [prompt of request 3..
///   sequence 1   [prompt of request 1] d  e  f  g  h  i ...
///   sequence 2   [prompt of request 2..........................       one batch a step: a column of rows
class Generator {
  public:
    struct Events {
        OnToken on_token;
        OnResult on_result;
        OnPrompt on_prompt = {};
    };

    /// Takes over all of the pass's sequences, and empties its memory.
    /// @param drafter borrowed, for all of the pass's sequences; nullptr: no speculation. The text is the same with it and
    ///                without.
    explicit Generator(ForwardPass & pass, Drafter * drafter = nullptr);

    /// Queues a request. It begins when a sequence is free and the context has room for its prompt beside the others.
    /// @return its number: 0, 1, ...
    /// @throws Error{invalid_input} if the prompt is empty or leaves no room in the context; Error{invalid_option}
    size_t submit(Request request);
    /// Takes a request out, waiting or begun; its result is not reported. No-op if it has ended.
    void cancel(size_t request);
    [[nodiscard]] bool is_idle() const noexcept;

    /// Decodes one batch and samples the tokens it gives. No-op when idle. Where the context is full the request that came
    /// last goes: it waits once more if it has no token yet, else it ends.
    /// @throws what ForwardPass::decode throws, except context_full; nothing of the batch stays behind, the requests stay as
    ///         they were
    void step(const Events & events);

    /// Answers a request while nothing else is under way.
    /// @throws as submit() and step(), except aborted behind the first token, which ends the answer; what the callbacks throw
    GenerationResult answer(Request request, const std::function<bool(const GeneratedToken &)> & on_token,
                            const std::function<void(size_t done, size_t total)> & on_prompt = {});

  private:
    struct Work {  // a request under way
        size_t request;
        Request asked;
        Answer answer;
        std::vector<llama_token>
            pending;         // to be decoded: of the prompt, or the token sampled last and a draft behind it
        size_t n_draft = 0;  // of pending, the last
        size_t n_rows = 0;   // of the latest batch
        int32_t row = -1;    // of the latest batch that is to be sampled from; -1: none

        [[nodiscard]] bool reads_prompt() const noexcept { return answer.result().n_steps == 0; }
    };
    struct Slot {                         // a sequence
        std::vector<llama_token> tokens;  // that it holds for good
        size_t n_drafted = 0;             // decoded behind them in the latest batch, until settle()
        size_t n_confirmed = 0;           // of these; they are in tokens too
        std::optional<Work> work;
    };

    [[nodiscard]] size_t n_cells(bool of_work) const;
    [[nodiscard]] std::optional<size_t> free_slot(const Request & request) const;
    void begin_waiting();
    void begin(size_t s, size_t number, Request request);
    void end(size_t s, StopReason reason, const OnResult & on_result);
    void leave(size_t s);
    void settle(size_t s);
    void empty(size_t s);
    void decode(const Events & events);
    void draft();
    [[nodiscard]] size_t room_for_draft(const Slot & slot, size_t n_answers) const;
    void decode_batch();
    [[nodiscard]] size_t count_useful_rows() const;
    bool make_room(const OnResult & on_result);
    static void take_rows(Slot & slot);
    [[nodiscard]] std::optional<StopReason> sample(size_t s, const OnToken & on_token);

    ForwardPass & pass_;
    Drafter * drafter_;
    size_t n_submitted_ = 0;
    std::deque<std::pair<size_t, Request>> waiting_;
    std::vector<Slot> slots_;  // [sequence]
    forward::BatchRows rows_;  // of the latest batch
};

}  // namespace harp::decoding
