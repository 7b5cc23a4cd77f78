// The forward pass that hesitates. It takes the place of llama_decode, and mixes in a second, reframed pass where
// entropy is high.
//
// HARP (arXiv 2412.07282). Everything above it (samplers, beam search, servers) uses it like llama.cpp.
// docs/ARCHITECTURE.md describes the life of a token; docs/METHOD.md what differs from the authors' code and why.
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
    /// Cost of its second pass. Rows of one batch that were mixed share the time of the batch's second passes equally.
    double second_pass_seconds = 0.0;
    double ratio = 0.0;  ///< second greatest probability over the greatest, of the vanilla distribution

    [[nodiscard]] double gate(Gate which) const noexcept { return which == Gate::entropy ? entropy : ratio; }
};

/// One output row as an observer sees it. The spans are valid only during the call.
struct StepObservation {
    llama_seq_id sequence = 0;  ///< the caller's id
    llama_pos position = 0;     ///< of the token whose successor is predicted
    StepRecord record;
    std::span<const float> vanilla;   ///< [n_vocab]
    std::span<const float> reframed;  ///< [n_vocab], mean over the reframings; empty where no second pass was mixed
    std::span<const float> mixed;     ///< [n_vocab], what logits() gives
};

/// Called once for each output row of a sequence with HARP on, in batch order, before decode() returns. It cannot call
/// decode() itself.
using StepObserver = std::function<void(const StepObservation &)>;

/// Identifies the embedding row that is to be perturbed.
struct RowToPerturb {
    llama_seq_id sequence = 0;  ///< the caller's id
    uint32_t ordinal = 0;       ///< number of the row in its sequence; stays when positions move
    uint32_t draw = 0;          ///< number of the draw in this sequence (Options::redraw)
    uint32_t reframing = 0;     ///< 0 .. Options::reframings - 1
};

/// Replaces the random perturbation, for example to replay recorded masks. Sets the factors that the row's embedding is
/// multiplied by, [n_embd]; on entry all are 1.
using RowPerturbation = std::function<void(const RowToPerturb &, std::span<float> factors)>;

/// Returns how many of the batch's output rows, in batch order, the caller expects to use; the others get no second
/// pass, unless it was decoded together with them (Schedule::fused). Called while a useful row waits for its second
/// pass, and again after each round of second passes, until no useful row waits. During the call step() is final;
/// logits() are mixed where the second pass is done, else vanilla.
using CountUsefulOutputs = std::function<size_t()>;

/// Counters since creation or reset_statistics(). Rows are rows of a llama_decode batch.
struct Statistics {
    uint64_t steps = 0;              ///< output rows judged
    uint64_t hesitations = 0;        ///< of these steps
    uint64_t clean_rows = 0;         ///< rows of the caller's batches
    uint64_t second_pass_rows = 0;   ///< rows of reframed twins
    uint64_t fused_steps = 0;        ///< output rows decoded together with their twin row
    uint64_t catch_ups = 0;          ///< second passes run on their own
    double total_seconds = 0;        ///< spent in decode()
    double llama_seconds = 0;        ///< the part spent in llama_decode; the rest is HARP's own work
    double second_pass_seconds = 0;  ///< the part of llama_seconds for twins (in fused steps: the time they added)

    Statistics & operator+=(const Statistics & other) noexcept;
};

/// State of Schedule::automatic.
struct ScheduleReport {
    Schedule chosen = Schedule::lazy;  ///< what the next step would use
    double cost_of_two = 0;            ///< c(2): time of a batch of two rows / time of one row; 0 while unmeasured
    double hesitation_share = 0;       ///< running share of hesitating steps
    double fused_cost = 0;             ///< predicted cost of a step, in steps without HARP; 0 while unmeasured
    double lazy_cost = 0;
};

/// A llama_context that takes a second look when it hesitates.
///
/// With HARP on, each of the caller's sequences has 1 + reframings inner ones (the clean stream and its reframed
/// twins), and the context has that many times the cells. With HARP off (no options) nothing is doubled, and decode()
/// is llama_decode.
///
/// Not thread-safe: one thread at a time, like llama_context. The model must outlive it.
class ForwardPass {
  public:
    /// Creates the context.
    ///
    /// @param params  as for llama.cpp: n_ctx, n_batch and n_seq_max count the caller's own rows
    /// @param options defaults of all sequences; nullopt: HARP off. No sequence can have more reframings than these
    /// @param n_ctx_twin tokens that each twin has room for; 0: as many as its sequence. Saves memory with the views
    ///                   `guidance` and `last` and the scope `generated`; no sequence can have a view that needs more.
    ///                   Above 0 all sequences share one KV cache (kv_unified). Not used where there is none (Mamba)
    /// @throws Error{invalid_option}    options or params out of range (n_seq_max * (1 + reframings) <= 256), or
    ///                                  n_ctx_twin with several sequences and no kv_unified
    /// @throws Error{unsupported_model} naming the reason: encoder-decoder, embeddings-only, no look-up of token
    ///                                  embeddings, or a failed self-check (a twin without perturbation differs from
    ///                                  the clean stream)
    /// @throws Error{decode_failed}     llama.cpp could not create the context (its log says why)
    /// Source: llama_init_from_model.
    ForwardPass(llama_model & model, llama_context_params params, const std::optional<Options> & options,
                uint32_t n_ctx_twin = 0);
    ~ForwardPass();
    ForwardPass(ForwardPass &&) noexcept;
    ForwardPass & operator=(ForwardPass &&) noexcept;

    /// Decodes a batch of tokens, or of embeddings (pictures), of any sequences. Rows with `logits` set become output
    /// rows. The NULL rules of llama_batch hold, except that embeddings need positions.
    ///
    /// After an error the pass can still be used. With HARP on, nothing of the failed batch stays; a sequence whose
    /// memory cannot go back (recurrent state) is emptied, and all such sequences if llama_decode failed while it
    /// computed. With HARP off, memory is as llama_decode left it.
    ///
    /// @param count_useful for batches whose last rows the caller may take back (speculation): see CountUsefulOutputs.
    ///                     Rows that are not useful keep their vanilla logits, except under Schedule::fused, though their
    ///                     records say they hesitated
    /// @throws Error{invalid_batch}    empty, larger than n_batch, a bad token or sequence id, positions that do not
    ///                                 follow
    /// @throws Error{context_full}     no room in the KV cache
    /// @throws Error{aborted}          the abort callback said stop
    /// @throws Error{unsupported_call} it was called by an observer of this pass
    /// @throws Error{decode_failed}    any other failure, including logits that are not numbers
    /// Source: llama_decode.
    void decode(const llama_batch & batch, const CountUsefulOutputs & count_useful = {});

    /// Final logits of the batch's row `i` (negative: counted from the last output row back), [n_vocab]. Valid until
    /// the next decode(); nullptr if the row is not an output row.  Source: llama_get_logits_ith.
    [[nodiscard]] float * logits(int32_t i);
    /// Final logits of all output rows, [n_outputs, n_vocab], in batch order.  Source: llama_get_logits.
    [[nodiscard]] float * all_logits();
    /// The record of row `i`, indexed like logits(). With HARP off, or with an infinite threshold, it is computed by
    /// this call.
    /// @throws Error{invalid_batch} if the row is not an output row
    [[nodiscard]] StepRecord step(int32_t i);
    /// Logits of row `i` before a second pass was mixed in, [n_vocab], valid until the next decode(). nullptr if the
    /// row is not an output row, or if it was mixed and no copy was kept (keep_vanilla_logits()).
    [[nodiscard]] const float * vanilla_logits(int32_t i);
    /// Whether rows of this sequence keep their vanilla logits from now on: one copy for each hesitation. At first they
    /// do not.
    void keep_vanilla_logits(llama_seq_id sequence, bool keep);

    /// @name Memory: like the llama_memory_ calls of the same names, applied to the twins too.
    /// @throws Error{invalid_input} from all that take a sequence id, naming the id and the allowed range
    /// @{
    void memory_clear(bool data);
    /// With HARP on it also returns false, changing nothing, where can_continue_at() is false. Sequence -1 means all of
    /// them, one after the other: false if one of them could not be cut.
    bool memory_seq_rm(llama_seq_id sequence, llama_pos p0, llama_pos p1);
    /// If the copy replaces everything that the destination held, the destination also takes over the source's options
    /// and mask family, because masks belong to the rows.
    /// @throws Error{unsupported_call} for a part, if the memory is not unified or the source cannot go back to its end
    void memory_seq_cp(llama_seq_id source, llama_seq_id destination, llama_pos p0, llama_pos p1);
    void memory_seq_keep(llama_seq_id sequence);
    void memory_seq_add(llama_seq_id sequence, llama_pos p0, llama_pos p1, llama_pos delta);
    void memory_seq_div(llama_seq_id sequence, llama_pos p0, llama_pos p1, int divisor);
    [[nodiscard]] llama_pos memory_seq_pos_min(llama_seq_id sequence) const;
    [[nodiscard]] llama_pos memory_seq_pos_max(llama_seq_id sequence) const;
    /// @}

    /// Whether the sequence, cut at `position`, would still hold every row that a token there attends to. False where a
    /// sliding window has moved on (though llama.cpp would cut there) and where a recurrent state would have to go
    /// back. True at 0 and at the end.
    [[nodiscard]] bool can_continue_at(llama_seq_id sequence, llama_pos position) const;

    /// @name State: the clean stream, the twins, the queue of pending rows and the draws.
    /// Source: llama_state_get_data, llama_state_seq_get_data_ext and their setters.
    /// @{
    /// An upper bound of the bytes that state_get() gives; saves nothing.
    [[nodiscard]] size_t state_size();
    [[nodiscard]] std::vector<uint8_t> state_get();
    /// @return bytes written  @throws Error{invalid_input} if there is no room for them
    size_t state_get(std::span<uint8_t> to);
    /// @param state may go on behind the state  @return bytes read
    /// @throws Error{invalid_state}; the memory is then empty
    size_t state_set(std::span<const uint8_t> state);
    [[nodiscard]] size_t state_seq_size(llama_seq_id sequence, llama_state_seq_flags flags = 0);
    [[nodiscard]] std::vector<uint8_t> state_seq_get(llama_seq_id sequence, llama_state_seq_flags flags = 0);
    size_t state_seq_get(std::span<uint8_t> to, llama_seq_id sequence, llama_state_seq_flags flags = 0);
    /// A partial state (LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) takes the sequence back to the rows it held when the state
    /// was saved. It must still hold those rows.
    /// @return bytes read  @throws Error{invalid_state}; the sequence is then empty
    size_t state_seq_set(std::span<const uint8_t> state, llama_seq_id sequence, llama_state_seq_flags flags = 0);
    /// @}

    /// Options of one sequence from now on. A change of view, seed, perturbation, strength, reframings, scope or mask
    /// family empties its twins; the next second pass computes them anew.
    ///
    /// @param mask_family which of the seed's mask families to use; by default unchanged (at first the sequence's own
    ///                    id). The same number gives a request the same masks in any slot.
    /// @throws Error{invalid_option} also if the context was created for fewer reframings or with too little room for the
    ///                               view (n_ctx_twin), or with HARP off
    void set_sequence_options(llama_seq_id sequence, const Options & options,
                              std::optional<uint32_t> mask_family = std::nullopt);
    /// Whether a sequence of this context can have these options. @throws Error{invalid_option} if not
    void check_options(const Options & options) const;
    [[nodiscard]] const Options & sequence_options(llama_seq_id sequence) const;

    /// What View::guidance reads instead of this sequence's prompt, from now on; empty: only the prompt's last token.
    /// Copies of the sequence have it too. No-op with HARP off.
    /// @throws Error{invalid_input} if a token is out of range, or there are more tokens than the sequence has room for
    void set_negative_prompt(llama_seq_id sequence, std::vector<llama_token> tokens);

    /// Tokens at positions < `end` are prompt, including those that the sequence already holds. They stay clean under
    /// Scope::generated, View::guidance does not read them, and their hesitations do not count for Options::redraw.
    /// Without this call, all rows up to the sequence's first output row are prompt.
    void set_prompt_end(llama_seq_id sequence, llama_pos end);

    /// How many rows the sequence can hold: n_ctx_seq(), or less where its twins are full before: with a negative prompt
    /// longer than the prompt, or with little room of their own (n_ctx_twin).
    [[nodiscard]] uint32_t max_rows(llama_seq_id sequence) const;
    /// The same for an empty sequence that is to hold a prompt of `n_prompt` tokens under these options.
    [[nodiscard]] uint32_t max_rows(const Options & options, size_t n_prompt,
                                    std::span<const llama_token> negative_prompt) const;
    /// Decodes the twins' pending rows now instead of at the next hesitation, so that copies of the sequence (beams)
    /// share them. No-op with HARP off, and where no twin is kept between hesitations (redraw 1, View::last). Without room
    /// for them the twins begin anew at the next hesitation.
    /// @throws Error{aborted} or Error{decode_failed}, as decode() does
    void prepare_twins(llama_seq_id sequence);

    void set_observer(StepObserver observer);
    void set_row_perturbation(RowPerturbation perturbation);

    [[nodiscard]] bool enabled() const noexcept;    ///< HARP is on: there are twins
    [[nodiscard]] uint32_t n_ctx() const noexcept;  ///< the caller's share of the cells
    [[nodiscard]] uint32_t n_ctx_seq() const noexcept;
    [[nodiscard]] uint32_t n_ctx_twin() const noexcept;  ///< tokens that a twin has room for
    [[nodiscard]] uint32_t n_batch() const noexcept;
    [[nodiscard]] uint32_t n_seq_max() const noexcept;
    [[nodiscard]] int32_t n_vocab() const noexcept;

    [[nodiscard]] const Statistics & statistics() const noexcept;
    void reset_statistics();
    [[nodiscard]] ScheduleReport schedule_report() const;

    /// Checks for every sequence and twin that rows and KV cache agree.
    /// @return a description of the first disagreement, or an empty string
    [[nodiscard]] std::string check_invariant() const;

    /// The inner context, for calls that HARP does not touch (threads, adapters, performance counters).
    [[nodiscard]] llama_context * context() noexcept;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace harp
