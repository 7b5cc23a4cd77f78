// What `harp calibrate` found, as text with a histogram and as JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "decoding/calibration.h"
#include "harp/options.h"

namespace harp::cli {

struct Calibration {
    bool is_generated = false;        ///< the steps are of an answer that the model gave, not of the text itself
    Gate gate = Gate::entropy;        ///< whose threshold is looked for
    std::vector<double> gate_values;  ///< of each step, in the gate's unit
    double wanted_share = 0;          ///< 0..1
    decoding::ThresholdChoice choice;
    std::optional<double> budget;  ///< --target-cost, with what it buys and the costs that say so
    decoding::BudgetShare bought{.share = 1};
    forward::CostModel costs;
    std::optional<decoding::ScoreSummary> vanilla;  ///< of a given text
    Options recommended;
    std::string command;  ///< line with them
};

/// A line for each bin: its range, share, bar; the threshold is marked in its bin.
/// @param unit  of the range, as a heading
/// @param width columns
[[nodiscard]] std::string histogram_text(const std::vector<decoding::HistogramBin> & bins, const std::string & unit,
                                         double threshold, size_t width);
[[nodiscard]] std::string calibration_text(const Calibration & calibration);
[[nodiscard]] nlohmann::json calibration_json(const Calibration & calibration);

/// `harp generate` with the model, all options that differ from their defaults, and a negative prompt, quoted for a shell.
[[nodiscard]] std::string command_with(const Options & options, const std::string & model_path,
                                       const std::string & negative_prompt = "");
/// The same with HARP off.
[[nodiscard]] std::string command_without(const std::string & model_path);

}  // namespace harp::cli
