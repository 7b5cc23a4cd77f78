// A recorded run of the authors' implementation: prompt and parameters, and for each step masks, logits and choices.
//
// One JSON object for each run. Masks are inside it (base64) or in a .npz beside it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "harp/options.h"
#include "llama.h"

namespace harp::decoding {

class Field;

struct RecordedLogit {
    llama_token id = 0;
    float logit = 0;  ///< raw, before temperature and penalties
};

struct RecordedStep {
    llama_pos n_positions = 0;  ///< length of the sequence at this step, which judged its last row
    double entropy = 0;         ///< of the vanilla distribution, bits; computed in float32
    bool hesitated = false;     ///< always false in a vanilla run
    llama_token token = 0;      ///< arg max of the final logits
    double margin = 0;          ///< largest minus second largest final logit
    std::vector<uint8_t> mask;  ///< [n_positions, n_embd / 8], bits, bit 7 first; 1 = kept. Empty: did not hesitate
    std::vector<RecordedLogit> vanilla;   ///< the 8 largest, largest first
    std::vector<RecordedLogit> reframed;  ///< the same; empty if it did not hesitate
    std::vector<RecordedLogit> mixed;     ///< the same

    /// Whether the mask keeps a coordinate.
    [[nodiscard]] bool keeps(size_t position, size_t coordinate, size_t n_embd) const {
        const size_t bit = position * n_embd + coordinate;
        return (mask[bit / 8] >> (7 - bit % 8) & 1) != 0;
    }
};

struct Recording {
    std::filesystem::path file;
    std::string model;               ///< name, for people
    std::optional<Options> options;  ///< the run's theta, beta and delta, redraw 1, lazy; nullopt: a vanilla run
    int32_t n_vocab = 0;
    int32_t n_embd = 0;
    std::vector<llama_token> prompt;  ///< not empty
    std::vector<RecordedStep> steps;  ///< not empty

    [[nodiscard]] size_t n_hesitations() const;
};

/// Reads a run and its masks.
///
/// @throws Error{io}               if the file or the archive of masks is missing or not readable
/// @throws Error{invalid_input}    naming file and field, if something is missing, out of range or contradictory
/// @throws Error{unsupported_call} for a recorded beam search: see beam_replay.h
[[nodiscard]] Recording read_recording(const std::filesystem::path & file);
/// The same from a file's content. @param root must not outlive its file's path and content
[[nodiscard]] Recording read_recording(const Field & root);

}  // namespace harp::decoding
