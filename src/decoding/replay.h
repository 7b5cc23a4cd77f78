// Replays a recorded run of the authors' implementation through ForwardPass and compares every step.
//
// The recorded masks replace the random ones. The recorded tokens are fed, whatever was chosen here, so that each step
// is compared on its own: entropy, gate, chosen token, and the largest logits before and after mixing.
#pragma once

#include <cstddef>
#include <string>

#include "decoding/recording.h"
#include "harp/forward_pass.h"

namespace harp::decoding {

/// The largest differences that still count as the same computation in float32.
struct ReplayTolerances {
    double entropy = 5e-4;  ///< bits; the authors' own float32 sum is off by up to 1.1e-4 with 49152 tokens
    double logits = 1e-3;
};

struct ReplaySettings {
    ReplayTolerances tolerances;
    int32_t n_threads = 1;
    /// Asked within batches and between steps whether to stop; nullptr: never.
    ggml_abort_callback should_stop = nullptr;
    /// Called for each second-pass row after the recorded mask was applied. For tests: a change made here must be
    /// noticed.
    RowPerturbation after_mask;
};

struct ReplayResult {
    size_t n_steps = 0;
    size_t n_hesitations = 0;       ///< of this run
    size_t n_gate_mismatches = 0;   ///< steps that hesitated in only one of the two runs
    size_t n_token_mismatches = 0;  ///< steps with different arg max
    size_t n_failures = 0;          ///< steps with any mismatch, or any difference above tolerance

    // Largest absolute differences of the recorded logits. A token not recorded that is above them counts by its
    // excess.
    double entropy_difference = 0;  ///< bits
    double vanilla_difference = 0;
    double reframed_difference = 0;  ///< over steps that hesitated in both runs
    double mixed_difference = 0;     ///< the same

    double smallest_margin = 0;         ///< over the steps, of largest minus second largest final logit
    double smallest_gate_distance = 0;  ///< over the steps, of |entropy - threshold|, bits; 0 in a vanilla run

    std::string first_mismatch;  ///< the step and what differed, for people; empty if none

    [[nodiscard]] bool passed() const noexcept { return n_failures == 0; }
};

/// A context that computes like the authors' code: float32 KV cache, no flash attention.
[[nodiscard]] llama_context_params replay_context(size_t n_tokens, int32_t n_threads);

/// @throws Error{invalid_input} naming file and field, if the recording does not belong to the model (vocabulary,
///                              width)
void check_model(const llama_model & model, const Recording & recording);

/// Replays the recording in its own context, with a float32 KV cache and without flash attention.
///
/// @param model the recording's weights in float32; quantised weights differ by more than the tolerances
/// @throws what check_model() and ForwardPass throw; Error{aborted} if it was to stop
[[nodiscard]] ReplayResult replay(llama_model & model, const Recording & recording,
                                  const ReplaySettings & settings = {});

}  // namespace harp::decoding
