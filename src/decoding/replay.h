// Replays a recorded run of the authors' implementation through ForwardPass and compares every step.
//
// The recorded masks take the place of the random ones, the recorded tokens are fed whatever was chosen here, so each
// step is compared on its own: entropy, gate, chosen token, the largest logits before and after mixing.
#pragma once

#include <cstddef>
#include <string>

#include "decoding/recording.h"
#include "harp/forward_pass.h"

namespace harp::decoding {

/// Largest differences that still count as the same computation in float32.
struct ReplayTolerances {
    double entropy = 5e-4;  ///< bits; the authors' own sum in float32 is off by up to 1.1e-4 at 49152 tokens
    double logits = 1e-3;
};

struct ReplaySettings {
    ReplayTolerances tolerances;
    int32_t n_threads = 1;
    /// Called for each row of the second pass after the recorded mask was applied. What it changes must be noticed.
    RowPerturbation after_mask;
};

struct ReplayResult {
    size_t n_steps = 0;
    size_t n_hesitations = 0;       ///< of this run
    size_t n_gate_mismatches = 0;   ///< steps that hesitated here and not there, or the other way round
    size_t n_token_mismatches = 0;  ///< steps whose arg max is another token
    size_t n_failures = 0;          ///< steps at which anything was out of tolerance, mismatches included

    // Largest absolute differences. Of each row the recorded logits are compared, and that no other token is above them.
    double entropy_difference = 0;  ///< bits
    double vanilla_difference = 0;
    double reframed_difference = 0;  ///< over steps that hesitated both here and there
    double mixed_difference = 0;     ///< likewise

    double smallest_margin = 0;         ///< over the steps: largest minus second largest final logit
    double smallest_gate_distance = 0;  ///< over the steps: |entropy - threshold|, bits; 0 in a vanilla run

    std::string first_mismatch;  ///< step and what differed there, for people; empty if none

    [[nodiscard]] bool passed() const noexcept { return n_failures == 0; }
};

/// A context that computes as the authors' code does: float32 KV cache, no flash attention.
[[nodiscard]] llama_context_params replay_context(size_t n_tokens, int32_t n_threads);

/// @throws Error{invalid_input} naming file and field, if the recording does not belong to the model (vocabulary, width)
void check_model(const llama_model & model, const Recording & recording);

/// Runs the recording. One context of its own, with a float32 KV cache and without flash attention.
///
/// @param model the recording's weights in float32; quantised weights differ by more than the tolerances
/// @throws what check_model() and ForwardPass throw
[[nodiscard]] ReplayResult replay(llama_model & model, const Recording & recording,
                                  const ReplaySettings & settings = {});

}  // namespace harp::decoding
