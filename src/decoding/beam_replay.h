// A recorded beam search of the authors' implementation, and its replay: the same search run here, compared step by
// step.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <variant>
#include <vector>

#include "decoding/beam_search.h"
#include "decoding/recording.h"
#include "llama.h"

namespace harp::decoding {

/// A beam as the authors' code held it after a step.
struct RecordedBeam {
    std::vector<llama_token> tokens;  ///< generated so far; a finished beam ends with its stop token
    double score = 0;
    bool is_finished = false;
};

struct BeamRecording {
    std::filesystem::path file;
    BeamOptions options;  ///< of the variant `authors`
    int32_t n_vocab = 0;
    std::vector<llama_token> prompt;  ///< not empty
    std::vector<llama_token> stop_tokens;
    std::vector<std::vector<RecordedBeam>> steps;  ///< [steps][beams], best first
    std::vector<llama_token> result;
};

/// @throws Error{io}, Error{invalid_input} naming file and field
[[nodiscard]] BeamRecording read_beam_recording(const std::filesystem::path & file);
/// A run or a beam search, as the file says. It is read once, so that it can be a pipe. @throws as read_recording()
[[nodiscard]] std::variant<Recording, BeamRecording> read_any_recording(const std::filesystem::path & file);
/// @throws Error{invalid_input} if the recording does not belong to the model
void check_model(const llama_model & model, const BeamRecording & recording);

struct BeamReplayResult {
    size_t n_steps = 0;
    bool same_result = false;
    double score_difference = 0;       ///< largest, over beams that agree
    size_t n_states_differing = 0;     ///< steps after which the beams differed
    size_t first_state_differing = 0;  ///< the first of these; n_steps if none
    std::string first_mismatch;        ///< for people; empty if none

    /// True if the result and the scores of equal beams are the authors'. States may differ: the authors' finished
    /// beams can take over another slot's score (a view of an array that is overwritten), which is not imitated here.
    [[nodiscard]] bool passed(double tolerance) const noexcept { return same_result && score_difference <= tolerance; }
};

/// Runs the search without HARP, as the authors did, in its own context: unified float32 KV cache, no flash attention.
/// @param model the recording's weights in float32
/// @param should_stop asked within batches and between steps; nullptr: never
/// @throws what check_model() and ForwardPass throw; Error{aborted} if it was to stop
[[nodiscard]] BeamReplayResult replay_beams(llama_model & model, const BeamRecording & recording, int32_t n_threads = 1,
                                            ggml_abort_callback should_stop = nullptr);

}  // namespace harp::decoding
