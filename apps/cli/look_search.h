// harp calibrate without a target: which second look helps this model on these examples? Many are tried on one half of the
// examples; the best one is checked on the other half.
#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "decoding/calibration.h"
#include "decoding/trial.h"
#include "scoring.h"

namespace harp::cli {

struct SearchFlags {
    std::string examples;  ///< path of a file of examples, a JSON object a line; else a text is read
    std::string metric;    ///< "accuracy", "log-likelihood", or "" for the default
    std::string views = "perturbed,masked,last:5,last:10,last:20,guidance";
    std::string gates = "entropy";
    std::string thresholds = "0.5,1,2,3";               ///< of the gate entropy, bits
    std::string ratio_thresholds = "0.05,0.1,0.3,0.6";  ///< of the gate ratio
    std::string betas = "0.5,1.25,1.5,2,2.5,3";
    std::string plausibilities = "0,0.01,0.1";
    std::string preset;  ///< path to write

    void add_to(CLI::App & app);
    /// @throws Error{invalid_option} naming the flag and what is wrong
    [[nodiscard]] std::vector<Options> sets(const Options & base) const;
};

struct Search {
    decoding::Metric metric = decoding::Metric::accuracy;
    size_t n_development = 0, n_check = 0;  ///< examples
    size_t n_readings = 0;                  ///< of the development part
    double vanilla = 0;                     ///< mean of the development part
    std::vector<decoding::TrialResult> tries;
    decoding::BestOfMany best;
    double check_vanilla = 0, check_best = 0;  ///< means of the check part
    decoding::PairedDifference check;
    double hesitation_share = 0;  ///< of the best, in the check part
    bool helps = false;           ///< better in both parts by more than chance
    Options recommended;          ///< of the best
    std::string negative_prompt;  ///< text that it reads; "": none
    std::string command;          ///< line with them, or with HARP off
};

/// @param text            what was given as prompt, where there is no file of examples
/// @param negative_prompt text for sets with View::guidance; "": none
/// @throws Error{aborted} if interrupted, Error{invalid_input} naming file and line
[[nodiscard]] Search run_search(LoadedModel & loaded, const std::string & text, const ScoringFlags & scoring,
                                const SearchFlags & flags, std::vector<Options> sets,
                                const std::string & negative_prompt);
[[nodiscard]] std::string search_text(const Search & search);
[[nodiscard]] nlohmann::json search_json(const Search & search);
/// @throws Error{io}
void write_preset(const Search & search, const std::string & path, const nlohmann::json & about);

}  // namespace harp::cli
