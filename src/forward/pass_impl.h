// Internals of ForwardPass, shared by the files that implement it (decode, memory, state, self-check).
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "forward/batch_rows.h"
#include "forward/cost_model.h"
#include "forward/reframing_hook.h"
#include "forward/row_order.h"
#include "forward/token_history.h"
#include "harp/forward_pass.h"
#include "llama-cpp.h"

namespace harp {

/// Where the caller's sequences and their twins live among the inner context's sequences.
///
///   blocks:       clean 0..n-1, first twins n..2n-1, ...   a batch of clean rows looks to llama.cpp as without HARP
///   interleaved:  s*(1+R) clean, +1 .. +R its twins        with a KV stream a sequence, llama.cpp puts only consecutive
///                                                          ids into one micro-batch: what `fused` needs there
struct SequenceLayout {
    uint32_t n_sequences = 1;
    uint32_t n_twins = 0;  // per sequence
    bool interleaved = false;

    [[nodiscard]] llama_seq_id clean(llama_seq_id sequence) const {
        return interleaved ? sequence * static_cast<llama_seq_id>(1 + n_twins) : sequence;
    }
    [[nodiscard]] llama_seq_id twin(llama_seq_id sequence, uint32_t reframing) const {
        const auto r = static_cast<llama_seq_id>(1 + reframing);
        return interleaved ? clean(sequence) + r : sequence + r * static_cast<llama_seq_id>(n_sequences);
    }
};

struct SequenceState {
    forward::TokenHistory history;
    Options options;
    uint32_t mask_sequence = 0;
    bool keeps_vanilla = false;
};

struct ForwardPass::Impl {
    /// One output row of the current batch.
    struct Output {
        int32_t row = 0;  // in the caller's batch
        llama_seq_id sequence = 0;
        llama_pos position = 0;
        float * logits = nullptr;  // [n_vocab], final; in llama.cpp's buffer or in kept_logits
        StepRecord record;
        bool is_judged = false;                // record holds the entropy
        bool is_mixed = false;                 // logits hold the mix with a second pass
        std::vector<int32_t> twin_rows;        // inner rows of its twins, if they are in the same batch (fused)
        std::vector<float> vanilla, reframed;  // [n_vocab], kept where they are wanted and a second pass was mixed
    };

    /// A stretch of a sequence's rows to be decoded for its twins.
    struct TwinJob {
        llama_seq_id sequence = 0;
        forward::DrawId draw;
        size_t begin = 0, end = 0;                       // rows of the history
        std::vector<std::pair<size_t, Output *>> wants;  // (row of the history, output that hesitates there)
    };

    struct InnerRow {
        llama_seq_id sequence = 0;  // the caller's
        uint32_t reframing = 0;
        bool is_twin = false;
        forward::DrawId draw;
        llama_pos mask_position = 0;
        bool reframed = false;  // a twin's row of a clean prompt is not
    };

    Impl(llama_model & model, llama_context_params params, const std::optional<Options> & options);

    // --- decode (forward_pass.cpp)
    void decode(const llama_batch & batch, const CountUsefulOutputs & count_useful);
    void decode_vanilla(const llama_batch & batch);
    void plan_fused(const std::vector<forward::TokenRow> & rows);
    void decode_clean(const std::vector<forward::TokenRow> & rows);
    void append_to_histories(const std::vector<forward::TokenRow> & rows);
    void collect_outputs(const std::vector<forward::TokenRow> & rows);
    void judge_outputs();
    void mix_fused(Output & output);
    void catch_up(const CountUsefulOutputs & count_useful);
    [[nodiscard]] bool waits_for_second_pass(const Output & output) const;
    [[nodiscard]] std::vector<TwinJob> next_jobs(std::vector<std::vector<Output *>> & waiting);
    void run_jobs(const std::vector<TwinJob> & jobs);
    void keep_logits();
    void mix(Output & output, std::span<const float> reframed);
    void share_second_pass(double seconds);  ///< of this batch, among the rows that were mixed
    void observe_outputs() const;
    /// The draw that a hesitation at a row of the sequence's history uses.
    [[nodiscard]] static forward::DrawId due_draw(const SequenceState & sequence, size_t row);

    // --- inner batches
    void add_inner(llama_token token, llama_pos position, std::span<const llama_seq_id> ids, bool is_output,
                   const InnerRow & row);
    /// Runs inner_batch through llama_decode with the hook armed. @return seconds
    double run_inner();
    [[nodiscard]] forward::ReframingHook::Perturb perturbation_of(const InnerRow & row);

    // --- shared
    [[nodiscard]] bool enabled() const noexcept { return layout.n_twins > 0; }
    [[nodiscard]] SequenceState & state(llama_seq_id sequence);
    [[nodiscard]] const SequenceState & state(llama_seq_id sequence) const;
    [[nodiscard]] std::span<float> logits_span(float * logits) const { return {logits, static_cast<size_t>(n_vocab)}; }
    void share_prompt(llama_seq_id sequence);
    [[nodiscard]] llama_pos first_own_position(llama_seq_id sequence) const;
    void complete_twins(llama_seq_id sequence);
    /// Empties the twins of a sequence; they begin anew at its next hesitation.
    void empty_twins(llama_seq_id sequence);
    /// seq_add and seq_div: `move(inner, p0)` changes the positions of an inner sequence from p0 on.
    template <typename Move>
    void move_positions(llama_seq_id sequence, llama_pos p0, Move move);
    /// Empties the twins of a sequence from the history row `from` on.
    void truncate_twins(llama_seq_id sequence, size_t from);
    void roll_back(const std::vector<forward::TokenRow> & rows);
    [[nodiscard]] Output * find_output(int32_t i);
    void judge(Output & output) const;

    // --- set-up (forward_pass.cpp, self_check.cpp)
    void refuse_unsupported(const llama_model & model, const llama_context_params & params) const;
    void self_check();

    // declared before the context, which calls back into it
    forward::ReframingHook hook;
    llama_context_ptr context;
    llama_memory_t memory = nullptr;
    SequenceLayout layout;
    forward::SplitPolicy split_policy = forward::SplitPolicy::in_order;
    uint32_t n_ubatch = 0;
    int32_t n_vocab = 0;
    int32_t n_swa = 0;

    std::vector<SequenceState> sequences;  // [layout.n_sequences]; empty with HARP off
    StepObserver observer;
    RowPerturbation row_perturbation;
    forward::CostModel costs;
    Statistics statistics;

    // --- the current batch
    std::vector<Output> outputs;     // in batch order
    std::vector<float> kept_logits;  // [outputs, n_vocab]: clean rows, once another llama_decode overwrites them
    bool logits_are_kept = false;
    std::vector<char> is_fused;  // [layout.n_sequences]
    forward::BatchRows inner_batch;
    std::vector<InnerRow> inner_rows;                // [inner_batch.size()]
    std::vector<int32_t> inner_of_row;               // [rows of the caller's batch]: index in the inner batch
    std::vector<std::vector<int32_t>> twins_of_row;  // [rows of the caller's batch][reframing]: likewise, if fused
    std::vector<float> scratch_reframed;             // [n_vocab]
};

}  // namespace harp
