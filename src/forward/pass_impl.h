// Internals of ForwardPass, shared by the files that implement it:
//
//   forward_pass.cpp   creation, results, settings
//   decode.cpp         one decode: clean rows, gate, mixing of fused rows
//   decode_layout.cpp  the batch of that decode
//   second_pass.cpp    twins that catch up
//   forward_memory.cpp operations of memory, state
//   self_check.cpp     refuses models that HARP cannot be used with
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "forward/batch_rows.h"
#include "forward/cost_model.h"
#include "forward/inner_batch.h"
#include "forward/memory.h"
#include "forward/outputs.h"
#include "forward/reframing.h"
#include "forward/sequence.h"
#include "harp/forward_pass.h"
#include "llama-cpp.h"

namespace harp {

struct ForwardPass::Impl {
    /// The work of one call of decode().
    struct Decode {
        /// State of a sequence before the batch.
        struct Mark {
            size_t n_rows = 0;
            llama_pos position = 0;  // of its first row in the batch
            std::optional<llama_pos> prompt_end = {};
            std::vector<uint8_t> state = {};  // partial; empty unless the sequence cannot be cut and cells may run out
        };
        std::vector<forward::CallerRow> rows;
        std::vector<std::optional<Mark>> marks;                  // [sequence]
        std::vector<char> is_fused;                              // [sequence]: its twins' rows are in this batch
        std::vector<std::vector<forward::Place>> places_of_row;  // [rows]: one for each of its sequences
        forward::InnerBatch inner;
        std::vector<int32_t> inner_of_row;               // [rows]
        std::vector<std::vector<int32_t>> twins_of_row;  // [rows][reframing]
    };

    /// One catch-up of a sequence's twins: they read the view of its first `end` rows, except for what they hold
    /// already.
    struct TwinJob {
        llama_seq_id sequence = 0;
        forward::Draw draw;
        size_t n_held = 0, end = 0;
        std::vector<forward::Output *> wants = {};  // hesitating rows among those read, by position
    };

    Impl(llama_model & model, llama_context_params params, const std::optional<Options> & options, uint32_t twin_room);

    // --- forward_pass.cpp
    /// Makes the parameters those of a context that holds the twins too.
    void add_twins(llama_context_params & params, const Options & options);

    // --- decode.cpp
    void decode(const llama_batch & batch, const CountUsefulOutputs & count_useful);
    void decode_vanilla(const llama_batch & batch);
    void run_clean(Decode & call);
    void collect_outputs(const Decode & call);
    void judge_outputs();
    void count_steps();
    static void judge(forward::Output & output, std::span<const float> logits);
    void mix_fused(forward::Output & output);
    void mix(forward::Output & output, std::span<const float> reframed);
    void share_second_pass(double seconds);  ///< spreads this decode's time over the rows that were mixed
    void observe_outputs();
    void take_back(const Decode & call);
    [[nodiscard]] std::string disagreement(const Decode & call) const;
    /// Decodes a batch with llama_decode, perturbing its twins' rows. @return seconds
    double run(forward::InnerBatch & batch);
    [[nodiscard]] forward::Reframing::Perturb perturbation_of(const forward::TwinRow & row);

    // --- decode_layout.cpp
    [[nodiscard]] Decode read(const llama_batch & batch) const;
    void plan_fused(Decode & call);
    void keep_states(Decode & call) const;
    void append_rows(Decode & call);
    void check_twin_room(const Decode & call) const;
    void drop_unfit(Decode & call) const;
    void lay_out(Decode & call);
    void lay_out_by_sequence(Decode & call);
    void add_twin_row(Decode & call, size_t i, uint32_t r);

    // --- second_pass.cpp
    void catch_up(const CountUsefulOutputs & count_useful);
    [[nodiscard]] bool waits_for_second_pass(const forward::Output & output) const;
    [[nodiscard]] std::vector<TwinJob> next_jobs(std::vector<std::vector<forward::Output *>> & waiting);
    void run_jobs(const std::vector<TwinJob> & jobs);
    /// Decodes the twins' pending rows now.
    void complete_twins(llama_seq_id sequence);

    // --- self_check.cpp
    void refuse_unsupported(const llama_model & model, const llama_context_params & params) const;
    void self_check();

    // --- shared
    [[nodiscard]] bool enabled() const noexcept { return layout.n_twins > 0; }
    /// What rows from outside are checked against.
    [[nodiscard]] forward::BatchLimits limits() const;
    /// Rows that a sequence with this view can hold.
    [[nodiscard]] uint32_t max_rows(const forward::ViewOf & view, uint32_t n_ctx_seq) const;
    /// @throws Error{invalid_input} naming the id and what is allowed
    void check_id(llama_seq_id sequence) const;
    [[nodiscard]] forward::Sequence & sequence(llama_seq_id sequence);
    [[nodiscard]] const forward::Sequence & sequence(llama_seq_id sequence) const;
    /// Logits of a row of llama.cpp's last batch, [n_vocab]. @throws Error{decode_failed} if there are none
    [[nodiscard]] std::span<float> inner_logits(int32_t row) const;
    /// @throws Error{context_full} if there is no room to move the sequence's positions: see Sequence::add
    void check_room_to_move(const forward::Sequence & moved) const;
    void write_state(forward::Writer & out);
    void write_state(forward::Writer & out, llama_seq_id sequence, llama_state_seq_flags flags);

    // declared before the context, whose callback uses it
    forward::Reframing reframing;
    llama_context_ptr context;
    forward::LlamaMemory memory;
    forward::SequenceLayout layout;
    int32_t n_vocab = 0;
    uint32_t n_ctx = 0;       // cells of the caller's sequences together
    uint32_t n_ctx_twin = 0;  // cells of each twin; 0: as many as its sequence has
    uint32_t n_batch = 0;     // rows of a caller's batch

    std::vector<forward::Sequence> sequences;  // [layout.n_sequences]; empty with HARP off
    std::vector<char> keeps_vanilla;           // [layout.n_sequences]
    StepObserver observer;
    RowPerturbation row_perturbation;
    forward::CostModel costs;
    Statistics statistics;
    forward::Outputs outputs;             // of the last decode
    std::vector<float> scratch_reframed;  // [n_vocab]
    bool is_decoding = false;
};

}  // namespace harp
