// Combinations of HARP options from the command line, and a table of their scores.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "decoding/sweep.h"
#include "scoring.h"

namespace harp::cli {

/// An option and the values that it takes in turn, as text.
struct Axis {
    std::string name;
    std::vector<std::string> values;
};

/// @param values "V1,V2,..."
[[nodiscard]] Axis make_axis(std::string name, const std::string & values);
/// @param sweeps each "NAME=V1,V2,..."
/// @throws Error{invalid_option} if a text has another form, or the name is not that of an option that changes a score
[[nodiscard]] std::vector<Axis> parse_sweeps(const std::vector<std::string> & sweeps);

/// The cartesian product of the axes, the last one changing fastest, each with the other options of `base`.
/// @param flag the flag that the axes come from, for messages
/// @throws Error{invalid_option} naming flag, option, value and range; also for more than 200 combinations
[[nodiscard]] std::vector<Options> combine(const Options & base, std::span<const Axis> axes, const std::string & flag);

/// Options for a pass that can run all combinations and starts as vanilla.
[[nodiscard]] Options options_of_pass(std::span<const Options> combinations);

/// Runs the combinations, with progress on standard error. @return the complete rows: fewer if interrupted
[[nodiscard]] std::vector<decoding::SweepRow> run_sweep(LoadedModel & loaded, const ScoringText & text,
                                                        std::span<const Options> combinations,
                                                        const std::vector<decoding::TokenScore> & vanilla);

/// A line for vanilla and one for each row: first the options that vary, then the results.
[[nodiscard]] std::string sweep_table(std::span<const Axis> axes, const decoding::ScoreSummary & vanilla,
                                      double vanilla_seconds, std::span<const decoding::SweepRow> rows);
[[nodiscard]] nlohmann::json sweep_json(std::span<const Axis> axes, std::span<const decoding::SweepRow> rows);

}  // namespace harp::cli
