// What a run reports: the closing summary for people, and JSON for programs. Both contain options, build and model.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "decoding/drafter.h"
#include "flags/effective_options.h"
#include "harp/forward_pass.h"

namespace harp::cli {

/// Versions of harp, llama.cpp and compiler, the instruction sets there are, and in commands the kernels in use.
[[nodiscard]] nlohmann::json build_json();

/// File name, size, description and model_fingerprint(). @throws Error{io}
[[nodiscard]] nlohmann::json model_json(const llama_model & model, const std::string & path);

/// One generated token with the record of the step that chose it.
[[nodiscard]] nlohmann::json token_json(llama_token id, const std::string & text, const StepRecord & record);
[[nodiscard]] nlohmann::json statistics_json(const Statistics & statistics);
/// "fused", or for auto what it chose and why.
[[nodiscard]] std::string schedule_text(const ForwardPass & pass, const Options & options);
/// A line of a summary: share of hesitations, cost of the second pass, schedule; empty with HARP off.
[[nodiscard]] std::string hesitation_text(const ForwardPass & pass, const std::optional<Options> & options);

/// A line of a summary: how much was drafted and accepted; empty without speculation.
[[nodiscard]] std::string speculation_text(const decoding::Drafter * drafter);
[[nodiscard]] nlohmann::json speculation_json(const decoding::Drafter * drafter);

/// JSON as text. Bytes that are not UTF-8 are replaced instead of throwing.
[[nodiscard]] std::string dump(const nlohmann::json & value, int indent = -1);

}  // namespace harp::cli
