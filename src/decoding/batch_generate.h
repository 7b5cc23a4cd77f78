// Many answers at once: requests wait in a queue, each of the pass's sequences works at one, all in one batch.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "decoding/answer.h"
#include "harp/forward_pass.h"
#include "sampling.h"

namespace harp::decoding {

struct BatchRequest {
    std::vector<llama_token> prompt;
    GenerationLimits limits;
    common_sampler_ptr sampler;
    std::optional<Options> options;  ///< nullopt: those the sequence has; must be so with HARP off
    uint32_t mask_sequence = 0;      ///< which of the seed's mask families
};

/// The answers of a pass's sequences, a step at a time.
///
///   sequence 0   [prompt of request 0......] a  b  c  end | [prompt of request 3..
///   sequence 1   [prompt of request 1] d  e  f  g  h  i ...
///   sequence 2   [prompt of request 2..........................       one batch a step: a column of rows
class BatchGenerator {
  public:
    using OnToken = std::function<void(size_t request, const GeneratedToken & token)>;
    /// GenerationResult::seconds is the request's share of the steps' time, by rows, its prompt included.
    using OnResult = std::function<void(size_t request, const GenerationResult & result)>;

    /// Takes over all of the pass's sequences, and empties its memory.
    /// @param pass made by harp_init_from_model, so that samplers find it by its context
    explicit BatchGenerator(ForwardPass & pass);

    /// Queues a request. @return its number: 0, 1, ...
    /// @throws Error{invalid_input} if the prompt is empty or leaves no room in the context; Error{invalid_option}
    size_t submit(BatchRequest request);
    /// Takes a request out, waiting or begun; its result is not reported. No-op if it has ended.
    void cancel(size_t request);
    [[nodiscard]] bool is_idle() const noexcept;

    /// Decodes one batch and draws the tokens it gives. No-op when idle.
    /// @throws what ForwardPass::decode throws; nothing of the batch stays behind, the requests stay as they were
    void step(const OnToken & on_token, const OnResult & on_result);

  private:
    struct Slot {
        size_t request = 0;
        BatchRequest asked;
        std::optional<Answer> answer;      // after its prompt
        std::vector<llama_token> pending;  // rows to decode: of the prompt, then the token drawn last
        size_t n_decoded = 0;              // of the sequence
        size_t n_rows = 0;                 // of the present batch
        int32_t row = -1;                  // of the present batch that a token is drawn from; -1: none
        double seconds = 0;
    };

    void begin(llama_seq_id sequence);
    void end(llama_seq_id sequence, StopReason reason, const OnResult & on_result);
    void draw(llama_seq_id sequence, const OnToken & on_token, const OnResult & on_result);

    ForwardPass & pass_;
    size_t n_submitted_ = 0;
    std::deque<std::pair<size_t, BatchRequest>> waiting_;
    std::vector<std::unique_ptr<Slot>> slots_;  // [sequence]
};

}  // namespace harp::decoding
