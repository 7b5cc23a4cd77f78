// generate --beams N: beam search instead of sampling.
#pragma once

#include <CLI/CLI.hpp>

#include "decoding/beam_search.h"
#include "decoding/request.h"
#include "model/loaded_model.h"

namespace harp::cli {

/// The flags of beam search.
struct BeamFlags {
    decoding::BeamOptions options = {.beams = 1};
    uint32_t n_best = 1;

    /// @param prints_several whether to add --n-best
    void add_to(CLI::App & app, bool prints_several);
    [[nodiscard]] bool is_on() const noexcept { return options.beams > 1; }
    /// Before the model is loaded: makes the context large enough for the beams' sequences, which share cells.
    /// @throws Error{invalid_option} also where a flag cannot be combined with beams
    void prepare(common_params & params, const std::optional<Options> & harp) const;
};

/// @throws Error{invalid_option} if beams and their twins are more sequences than llama.cpp has
void check_sequences(uint32_t beams, const std::optional<Options> & harp);

/// Searches and prints: text, or one JSON object.
///
/// @param request prompt and negative prompt; the rest of it comes from the flags
/// @return the exit code
[[nodiscard]] int generate_beams(LoadedModel & loaded, const FormattedPrompt & prompt, decoding::Request request,
                                 const BeamFlags & flags, bool as_json);

}  // namespace harp::cli
