// Log-likelihoods of many texts at once, as an evaluation asks for them: context and continuation, several sequences in
// one batch.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "decoding/score.h"
#include "harp/forward_pass.h"

namespace harp::decoding {

struct ScoreRequest {
    std::vector<llama_token> tokens;  ///< context, then continuation
    size_t n_context = 1;             ///< the tokens behind these are scored
    /// Options of the sequence. Empty: those it has; with HARP off they must be empty. Several give one score each from
    /// one reading, if any two of them can_share_reading() or one is_vanilla().
    std::vector<Options> options;
    uint32_t mask_family = 0;                       ///< which of the seed's mask families
    std::vector<llama_token> negative_prompt = {};  ///< ForwardPass::set_negative_prompt
};

/// @throws Error{invalid_input} if context or continuation is empty, or they or the negative prompt do not fit into the
///         context; Error{invalid_option}, also for options that cannot share a reading
void validate(const ScoreRequest & request, const ForwardPass & pass);

/// Whether the passes compute the same under both. They may differ in gate, threshold, beta and plausibility; with uniform
/// noise or redraw, which depend on where the model hesitates, only in beta and plausibility.
[[nodiscard]] bool can_share_reading(const Options & a, const Options & b);

/// Sets of options that one reading serves.
struct Reading {
    std::vector<size_t> members;   ///< which of the sets they are
    std::vector<Options> options;  ///< [member]
};
/// The smallest number of readings that serves all sets but the vanilla ones.
[[nodiscard]] std::vector<Reading> group_by_reading(std::span<const Options> sets);

struct ScoreResult {
    std::vector<TokenScore> tokens;  ///< one for each token of the continuation
    bool is_greedy = true;           ///< each is the most likely one of the final logits
    bool is_vanilla_greedy = true;   ///< each is the most likely one of the vanilla logits
    /// Its share of the batches' time, by rows. For vanilla options read with others: without the second passes' time.
    double seconds = 0;
};

/// Scores requests with the sequences of a pass, a batch at a time. Requests that differ only in their last token (answers
/// A, B, C, ...) are read once.
class BatchScorer {
  public:
    /// One result for each of the request's options, or one.
    using OnResult = std::function<void(size_t request, std::span<const ScoreResult> results)>;

    /// Takes over all sequences of the pass and empties its memory. While the scorer lives, the sequences keep their vanilla
    /// logits.
    explicit BatchScorer(ForwardPass & pass);
    ~BatchScorer();
    BatchScorer(const BatchScorer &) = delete;
    BatchScorer & operator=(const BatchScorer &) = delete;

    /// Queues a request. @return its number: 0, 1, ...
    /// @throws what validate() throws
    size_t submit(ScoreRequest request);
    [[nodiscard]] bool is_idle() const noexcept;
    /// Rows decoded so far, of all requests.
    [[nodiscard]] size_t n_decoded() const noexcept { return n_decoded_; }

    /// Decodes one batch. No-op when idle.
    /// @throws what ForwardPass::decode throws; then nothing of the batch stays, and the requests are as before
    void step(const OnResult & on_result);

  private:
    struct Member {  // a request of a group
        size_t request = 0;
        llama_token last = 0;
    };
    struct Group {           // requests that differ only in their last token
        ScoreRequest asked;  // of the first of them
        std::vector<Member> members;
        Options reading;                                // serves all of the options asked
        std::vector<ScoreResult> common;                // [option set], of the tokens before the last
        std::vector<std::vector<ScoreResult>> results;  // [member][option set]
        size_t n_decoded = 0;
        size_t n_rows = 0;  // of the present batch

        /// The tokens to decode: all but the last, whose successor nobody asks for.
        [[nodiscard]] std::span<const llama_token> rows() const {
            return std::span(asked.tokens).first(asked.tokens.size() - 1);
        }
        /// Cells of the sequence, or of its twin where a negative prompt makes that longer.
        [[nodiscard]] size_t n_cells() const;
    };

    [[nodiscard]] bool has_room_for_next() const;
    void begin(llama_seq_id sequence);
    void score_row(Group & group, int32_t row, size_t position);
    static void finish(Group & group, const OnResult & on_result);

    ForwardPass & pass_;
    std::vector<float> mixed_;  // [n_vocab], for one of several options
    size_t n_submitted_ = 0;
    size_t n_decoded_ = 0;
    std::deque<std::shared_ptr<Group>> waiting_;
    std::map<std::vector<llama_token>, std::weak_ptr<Group>> by_prefix_;  // those that wait
    std::vector<std::shared_ptr<Group>> slots_;                           // [sequence]
};

}  // namespace harp::decoding
