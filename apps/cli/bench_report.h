// harp bench: the results as a table for people, as Markdown, as JSON and as a plot.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "decoding/spread.h"

namespace harp::cli {

/// A method's results over all rounds. Ratios are to vanilla in the same round.
struct BenchRow {
    std::string name;
    std::string meaning;
    decoding::Spread steps_per_second;     ///< decoding only; a step of a beam search advances all beams
    decoding::Spread step_ratio;           ///< time of a step / time of a vanilla step, without prompts
    decoding::Spread total_ratio;          ///< time of the answers / time of vanilla's, with prompts
    decoding::Spread first_token_seconds;  ///< mean over the prompts
    double hesitation_share = -1;          ///< of judged rows; below 0: HARP off
    double twin_rows_per_step = 0;
    size_t cache_bytes = 0;  ///< of its context's KV cache and recurrent state, as they are allocated
    double acceptance = -1;  ///< of drafted tokens; below 0: no speculation
    int n_same = -1;         ///< prompts with the same tokens as the reference method; below 0: no such method
    std::string reference;
};

/// An external command that is timed along with the methods.
struct BenchBaseline {
    std::string command;
    decoding::Spread seconds;
    decoding::Spread total_ratio;  ///< to vanilla's whole round
};

struct BenchReport {
    std::vector<BenchRow> rows;
    std::optional<BenchBaseline> baseline;
    size_t n_prompts = 0;
    size_t n_prompt_tokens = 0;
    size_t n_predict = 0;
    int n_rounds = 0;
    bool is_complete = true;
    std::vector<std::string> facts;  ///< machine, model, options, as lines for people
    nlohmann::json context;          ///< the same for programs
};

[[nodiscard]] std::string bench_text(const BenchReport & report);
[[nodiscard]] std::string bench_markdown(const BenchReport & report);
[[nodiscard]] nlohmann::json bench_json(const BenchReport & report);
/// Bars of the time of a step relative to vanilla, with ranges, as an SVG document.
[[nodiscard]] std::string bench_svg(const BenchReport & report);

}  // namespace harp::cli
