// Combinations of HARP options from the command line, and the table of what each scored.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "decoding/sweep.h"
#include "scoring.h"

namespace harp::cli {

/// An option and the values it takes in turn, as text.
struct Axis {
    std::string name;
    std::vector<std::string> values;
};

/// @param values "V1,V2,..."
[[nodiscard]] Axis make_axis(std::string name, const std::string & values);
/// @param sweeps each "NAME=V1,V2,..."
/// @throws Error{invalid_option} if a text is no such thing, or the name is not of an option that changes a score
[[nodiscard]] std::vector<Axis> parse_sweeps(const std::vector<std::string> & sweeps);

/// The cartesian product of the axes, the last one changing fastest, each with the other options of `base`.
/// @param flag that the axes come from, for the message
/// @throws Error{invalid_option} naming flag, option, value and range; also for more than 200 combinations
[[nodiscard]] std::vector<Options> combine(const Options & base, std::span<const Axis> axes, const std::string & flag);

/// Options of a pass that can run all combinations and begins as vanilla.
[[nodiscard]] Options options_of_pass(std::span<const Options> combinations);

/// Runs the combinations with progress on stderr. @return the rows that are complete: fewer if interrupted
[[nodiscard]] std::vector<decoding::SweepRow> run_sweep(LoadedModel & loaded, const ScoringText & text,
                                                        std::span<const Options> combinations,
                                                        const std::vector<decoding::TokenScore> & vanilla);

/// A line for vanilla and one for each row: the options that vary, then figures.
[[nodiscard]] std::string sweep_table(std::span<const Axis> axes, const decoding::ScoreSummary & vanilla,
                                      double vanilla_seconds, std::span<const decoding::SweepRow> rows);
[[nodiscard]] nlohmann::json sweep_json(std::span<const Axis> axes, std::span<const decoding::SweepRow> rows);

}  // namespace harp::cli
