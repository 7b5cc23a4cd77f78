// The forward pass that hesitates: stands where llama_decode stands, and mixes in a reframed pass where entropy is high.
//
// HARP (arXiv 2412.07282). Everything above it (samplers, beam search, servers) uses it as one uses llama.cpp.
// docs/ARCHITECTURE.md tells the life of a token; docs/METHOD.md what differs from the authors' code and why.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "harp/error.h"
#include "harp/options.h"
#include "llama.h"

namespace harp {

/// What happened at one output row.
struct StepRecord {
    double entropy = 0.0;    ///< of the vanilla distribution, bits
    bool hesitated = false;  ///< gate(Options::gate) > threshold, strictly
    /// What its second pass cost: the rows of a batch that were mixed share the batch's second passes in equal parts.
    double second_pass_seconds = 0.0;
    double ratio = 0.0;  ///< second greatest probability over the greatest, of the vanilla distribution

    [[nodiscard]] double gate(Gate which) const noexcept { return which == Gate::entropy ? entropy : ratio; }
};

/// One output row as an observer sees it. The spans are valid during the call only.
struct StepObservation {
    llama_seq_id sequence = 0;  ///< the caller's id
    llama_pos position = 0;     ///< of the token whose successor is predicted
    StepRecord record;
    std::span<const float> vanilla;   ///< [n_vocab]
    std::span<const float> reframed;  ///< [n_vocab], mean over the reframings; empty where no second pass was mixed
    std::span<const float> mixed;     ///< [n_vocab], what logits() gives
};

/// Called once for each output row of a sequence with HARP on, in the order of the batch, before decode() returns.
using StepObserver = std::function<void(const StepObservation &)>;

/// Which embedding row a perturbation is asked for.
struct RowToPerturb {
    llama_seq_id sequence = 0;  ///< the caller's id
    uint32_t ordinal = 0;       ///< counts the sequence's rows, and does not change when positions move
    uint32_t draw = 0;          ///< counts the draws of this sequence (Options::redraw)
    uint32_t reframing = 0;     ///< 0 .. Options::reframings - 1
};

/// Replaces the random perturbation (replay of recorded masks, own kinds of them): sets the factors that the row's embedding is
/// multiplied by, [n_embd], all 1 before.
using RowPerturbation = std::function<void(const RowToPerturb &, std::span<float> factors)>;

/// How many of the batch's output rows, in batch order, the caller will use as far as it can tell now; the others are
/// spared the second pass. Asked while a hesitating row waits for it, with step() as it will stay and logits() mixed where
/// the second pass was made already, else vanilla. Asked again after each second pass, until it wants no more rows.
using CountUsefulOutputs = std::function<size_t()>;

/// Counters since creation or reset_statistics(). Rows are rows of a llama_decode batch.
struct Statistics {
    uint64_t steps = 0;              ///< output rows judged
    uint64_t hesitations = 0;        ///< of these
    uint64_t clean_rows = 0;         ///< rows the caller asked for
    uint64_t second_pass_rows = 0;   ///< rows of reframed twins
    uint64_t fused_steps = 0;        ///< output rows decoded together with their twin row
    uint64_t catch_ups = 0;          ///< second passes run on their own
    double total_seconds = 0;        ///< inside decode()
    double llama_seconds = 0;        ///< of these, inside llama_decode; the difference is HARP's own work
    double second_pass_seconds = 0;  ///< of llama_seconds, what the twins cost (for fused steps: what they added)
};

/// What Schedule::automatic knows and does.
struct ScheduleReport {
    Schedule chosen = Schedule::lazy;  ///< what the next step would use
    double cost_of_two = 0;            ///< c(2): time of a batch of two rows / of one; 0 while unmeasured
    double hesitation_share = 0;       ///< running share of hesitating steps
    double fused_cost = 0;             ///< predicted cost of a step, in steps without HARP; 0 while unmeasured
    double lazy_cost = 0;
};

/// A llama_context that looks twice when it hesitates.
///
/// With HARP on, the context holds for each of the caller's sequences 1 + reframings inner ones (the clean stream and its
/// reframed twins) and as many times the cells. With HARP off (no options) nothing is doubled and decode() is llama_decode.
///
/// Not thread-safe; one thread at a time, as llama_context. The model must outlive it.
class ForwardPass {
  public:
    /// Creates the context.
    ///
    /// @param params  as the caller would give llama.cpp: n_ctx, n_batch, n_seq_max count the caller's own rows
    /// @param options defaults of all sequences; nullopt is HARP off. Options::reframings is the most any sequence may use
    /// @throws Error{invalid_option}    options or params out of range (n_seq_max * (1 + reframings) <= 256)
    /// @throws Error{unsupported_model} by name: encoder-decoder, embeddings-only, no look-up of token embeddings,
    ///                                  or the self-check failed (twin without perturbation differs from the clean stream)
    /// @throws Error{decode_failed}     llama.cpp could not create the context (its log says why)
    /// Source: llama_init_from_model.
    ForwardPass(llama_model & model, llama_context_params params, const std::optional<Options> & options);
    ~ForwardPass();
    ForwardPass(ForwardPass &&) noexcept;
    ForwardPass & operator=(ForwardPass &&) noexcept;

    /// Decodes a batch of tokens, or of embeddings (pictures), of any sequences; rows with `logits` set become output rows (all
    /// NULL rules of llama_batch hold, but embeddings need positions). On an error nothing of the batch stays behind, and the pass can be used on.
    ///
    /// @param count_useful for batches whose last rows the caller may take back (speculation): see CountUsefulOutputs. An
    ///                     output row that is not useful keeps its vanilla logits, though its record says it hesitated
    /// @throws Error{invalid_batch}    empty, larger than n_batch, a bad token or sequence id, positions that do not follow
    /// @throws Error{context_full}     no room in the KV cache
    /// @throws Error{aborted}          the abort callback said stop
    /// @throws Error{decode_failed}    anything else, also logits that are not numbers
    /// Source: llama_decode.
    void decode(const llama_batch & batch, const CountUsefulOutputs & count_useful = {});

    /// Final logits of the batch's row `i` (negative: from the last output row back), [n_vocab]; valid until the next
    /// decode(); nullptr if the row is not an output row.  Source: llama_get_logits_ith.
    [[nodiscard]] float * logits(int32_t i);
    /// Final logits of all output rows, [n_outputs, n_vocab], in batch order.  Source: llama_get_logits.
    [[nodiscard]] float * all_logits();
    /// The record of row `i`, indexed like logits(). With HARP off, or a threshold of infinity, entropy is computed now.
    /// @throws Error{invalid_batch} if the row is not an output row
    [[nodiscard]] StepRecord step(int32_t i);
    /// What logits(i) was before a second pass was mixed in, [n_vocab]; nullptr where one was and the sequence does not keep
    /// them, and if the row is not an output row. Valid until the next decode().
    [[nodiscard]] const float * vanilla_logits(int32_t i);
    /// From now on the sequence's rows keep their vanilla logits, or not (as at first): a copy for each hesitation.
    void keep_vanilla_logits(llama_seq_id sequence, bool keep);

    /// @name Memory: as their llama_memory_ namesakes, each for the twins too.
    /// @throws Error{invalid_input} from all that take a sequence id, naming it and what is allowed
    /// @{
    void memory_clear(bool data);
    /// Sequence -1 is all of them. With HARP on false too, with nothing changed, where can_continue_at() is.
    bool memory_seq_rm(llama_seq_id sequence, llama_pos p0, llama_pos p1);
    /// Where the copy replaces all that the destination held, its options and mask family become the source's: masks go with the
    /// rows.
    void memory_seq_cp(llama_seq_id source, llama_seq_id destination, llama_pos p0, llama_pos p1);
    void memory_seq_keep(llama_seq_id sequence);
    void memory_seq_add(llama_seq_id sequence, llama_pos p0, llama_pos p1, llama_pos delta);
    void memory_seq_div(llama_seq_id sequence, llama_pos p0, llama_pos p1, int divisor);
    [[nodiscard]] llama_pos memory_seq_pos_min(llama_seq_id sequence) const;
    [[nodiscard]] llama_pos memory_seq_pos_max(llama_seq_id sequence) const;
    /// @}

    /// Whether the sequence, cut at `position`, still holds all that a token there attends to. Not so where a sliding window has
    /// moved on (though llama.cpp cuts there) and where recurrent state would have to go back. True at 0 and at the end.
    [[nodiscard]] bool can_continue_at(llama_seq_id sequence, llama_pos position) const;

    /// @name State: the clean stream, the twins, the queue of pending rows and the draws.
    /// Source: llama_state_get_data, llama_state_seq_get_data_ext and their setters.
    /// @{
    /// Bytes that state_get() will give at most, without saving anything.
    [[nodiscard]] size_t state_size();
    [[nodiscard]] std::vector<uint8_t> state_get();
    /// @return bytes written  @throws Error{invalid_input} if there is no room for them
    size_t state_get(std::span<uint8_t> to);
    /// @throws Error{invalid_state}; the memory is then empty
    void state_set(std::span<const uint8_t> state);
    [[nodiscard]] size_t state_seq_size(llama_seq_id sequence, llama_state_seq_flags flags = 0);
    [[nodiscard]] std::vector<uint8_t> state_seq_get(llama_seq_id sequence, llama_state_seq_flags flags = 0);
    size_t state_seq_get(std::span<uint8_t> to, llama_seq_id sequence, llama_state_seq_flags flags = 0);
    /// A partial state (LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) takes a sequence that still holds the rows it had then back to them.
    /// @throws Error{invalid_state}; the sequence is then empty
    void state_seq_set(std::span<const uint8_t> state, llama_seq_id sequence, llama_state_seq_flags flags = 0);
    /// @}

    /// Options of one sequence from now on. A change of seed, kind, strength, reframings or scope makes its twin start anew.
    ///
    /// @param mask_family which of the seed's mask families to use; by default the sequence's own id. Give the same number
    ///                    to have the same masks whatever slot a request lands in.
    /// @throws Error{invalid_option} also when reframings exceeds what the context was created with, or HARP is off
    void set_sequence_options(llama_seq_id sequence, const Options & options,
                              std::optional<uint32_t> mask_family = std::nullopt);
    [[nodiscard]] const Options & sequence_options(llama_seq_id sequence) const;

    /// What View::guidance reads in the place of the prompt of this sequence, from now on; empty: the prompt's last token. Copies of
    /// the sequence have it too. No-op with HARP off.
    /// @throws Error{invalid_input} naming a token out of range, or more than the sequence has room for
    void set_negative_prompt(llama_seq_id sequence, std::vector<llama_token> tokens);

    /// Tokens at positions < `end` are prompt, those that the sequence holds already too, as if they were decoded anew: they
    /// stay clean under Scope::generated, View::guidance does not read them, and their hesitations do not count for Options::redraw. Without a call, all rows up
    /// to the sequence's first output row are prompt.
    void set_prompt_end(llama_seq_id sequence, llama_pos end);

    /// Decodes the rows that the sequence's twins have not seen now, not at the next hesitation, so that copies of the
    /// sequence (beams) share them. No-op with HARP off, and where each hesitation draws anew (redraw 1).
    void prepare_twins(llama_seq_id sequence);

    void set_observer(StepObserver observer);
    void set_row_perturbation(RowPerturbation perturbation);

    [[nodiscard]] bool enabled() const noexcept;    ///< HARP on: twins exist
    [[nodiscard]] uint32_t n_ctx() const noexcept;  ///< the caller's share of the cells
    [[nodiscard]] uint32_t n_ctx_seq() const noexcept;
    [[nodiscard]] uint32_t n_batch() const noexcept;
    [[nodiscard]] uint32_t n_seq_max() const noexcept;
    [[nodiscard]] int32_t n_vocab() const noexcept;

    [[nodiscard]] const Statistics & statistics() const noexcept;
    void reset_statistics();
    [[nodiscard]] ScheduleReport schedule_report() const;

    /// Checks that history and KV cache agree, for every sequence and twin.
    /// @return a description of the first disagreement, or an empty string
    [[nodiscard]] std::string check_invariant() const;

    /// The inner context, for calls that HARP does not touch (threads, adapters, performance counters).
    [[nodiscard]] llama_context * context() noexcept;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace harp
