#include "calibration_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "flags/command_line.h"
#include "flags/terminal.h"
#include "model/report.h"
#include "scoring.h"

namespace harp::cli {

namespace {

using decoding::HistogramBin;
using nlohmann::json;

constexpr std::array<double, 5> quantiles = {0.05, 0.25, 0.5, 0.75, 0.95};
constexpr size_t max_bins = 20;

double mean_of(const std::vector<double> & values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// A bar of `part` * `width` columns, precise to an eighth of a column.
std::string bar(double part, size_t width) {
    constexpr std::array<const char *, 8> eighths = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    const auto n = static_cast<size_t>(std::lround(part * static_cast<double>(width) * 8));
    std::string text;
    for (size_t i = 0; i < n / 8; ++i) text += "█";
    return text + eighths[n % 8];
}

std::string source_text(const Calibration & c) {
    const char * source = c.is_generated
                              ? "steps of an answer that the vanilla model generated"
                              : "steps of the given text (--generate takes those of an answer: hesitation in use)";
    const char * measured = c.gate == Gate::entropy ? "entropy" : "second best probability over the best";
    return fmt::format("{} {}\n{} of the vanilla distribution:\n\n", c.gate_values.size(), source, measured);
}

std::string quantile_text(const Calibration & c) {
    std::string text = "quantiles:";
    for (const double q : quantiles)
        text += fmt::format(" {:.0f} % {:.2f}{}", 100 * q, decoding::quantile(c.gate_values, q),
                            q == quantiles.back() ? "" : ",");
    return text + fmt::format("; mean {:.2f}\n", mean_of(c.gate_values));
}

std::string budget_text(const Calibration & c) {
    if (!c.budget) return {};
    std::string text = "measured time of a batch of n rows, in batches of one:";
    for (size_t n = 1; n <= forward::CostModel::max_rows; n *= 2) {
        if (c.costs.is_measured(n))
            text += fmt::format(" c({}) {:.2f}", n,
                                *c.costs.call_seconds(static_cast<double>(n)) / *c.costs.call_seconds(1));
    }
    const bool is_fused = c.bought.schedule == Schedule::fused;
    text +=
        fmt::format("\nbudget {:.2f}: hesitate at {:.1f} % of the steps at most, predicted cost {:.2f} ({})\n",
                    *c.budget, 100 * c.bought.share, c.bought.cost, is_fused ? "fused: any share costs c(2)" : "lazy");
    if (c.wanted_share == 1)
        text += "It buys reframing at each step, which the paper found to hurt; --target-share limits it.\n";
    return text;
}

std::string threshold_text(const Calibration & c) {
    const auto n = static_cast<double>(c.gate_values.size());
    const double share = c.choice.share;
    // with one step more on each side of the threshold, so that a share of 0 or 1 among few steps is not certain
    const double guess = (share * n + 1) / (n + 2);
    const double error = std::isinf(c.choice.threshold) ? 0 : std::sqrt(guess * (1 - guess) / (n + 2));
    return fmt::format(
        "threshold {:.10g}: {:.1f} % of these steps are above it (wanted: {:.1f} %; ± {:.1f} as a sample of {:.0f} "
        "steps)\n",
        c.choice.threshold, 100 * share, 100 * c.wanted_share, 100 * error, n);
}

json histogram_json(const Calibration & c) {
    json bins = json::array();
    for (const HistogramBin & bin : decoding::histogram(c.gate_values, max_bins)) {
        const double share = static_cast<double>(bin.count) / static_cast<double>(c.gate_values.size());
        bins.push_back({{"begin", bin.begin}, {"end", bin.end}, {"count", bin.count}, {"share", share}});
    }
    return bins;
}

json target_json(const Calibration & c) {
    json target = {{"share", c.wanted_share}};
    if (!c.budget) return target;
    json costs = json::array();
    for (size_t n = 1; n <= forward::CostModel::max_rows; n *= 2) {
        if (c.costs.is_measured(n))
            costs.push_back({{"rows", n}, {"seconds", *c.costs.call_seconds(static_cast<double>(n))}});
    }
    target["cost"] = *c.budget;
    target["predicted_cost"] = c.bought.cost;
    target["schedule"] = c.bought.schedule == Schedule::fused ? "fused" : "lazy";
    target["batches"] = costs;
    return target;
}

/// Options that differ from their defaults, in the order of the table.
std::vector<std::string_view> changed_options(const Options & options) {
    std::vector<std::string_view> names;
    for (const OptionInfo & info : option_table()) {
        if (get_option(options, info.name) != info.default_value) names.push_back(info.name);
    }
    return names;
}

std::string quoted(const std::string & word) {
    const bool is_plain = !word.empty() && std::all_of(word.begin(), word.end(), [](unsigned char c) {
        return std::isalnum(c) != 0 ||
               std::string_view("._-/+:@%").find(static_cast<char>(c)) != std::string_view::npos;
    });
    if (is_plain) return word;
    std::string text = "'";
    for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return text + "'";
}

}  // namespace

std::string histogram_text(const std::vector<HistogramBin> & bins, const std::string & unit, double threshold,
                           size_t width) {
    size_t most = 1;
    size_t total = 0;
    for (const HistogramBin & bin : bins) {
        most = std::max(most, bin.count);
        total += bin.count;
    }
    constexpr size_t columns_before = 24;
    const std::string mark = fmt::format(" ◄ threshold {:.10g}", threshold);
    const size_t columns_beside = columns_before + mark.size() - 2;  // the mark's arrow has three bytes
    const size_t bar_width = std::max<size_t>(10, width > columns_beside ? width - columns_beside : 0);
    std::string text = fmt::format("{:>11}  {:>7}\n", unit, "share");
    for (const HistogramBin & bin : bins) {
        const auto count = static_cast<double>(bin.count);
        const bool is_marked = threshold >= bin.begin && threshold < bin.end;
        text += fmt::format("{:>4.4g} - {:<4.4g}  {:>5.1f} %  {}{}\n", bin.begin, bin.end,
                            100 * count / static_cast<double>(total), bar(count / static_cast<double>(most), bar_width),
                            is_marked ? mark : "");
    }
    return text;
}

std::string calibration_text(const Calibration & c) {
    const auto bins = decoding::histogram(c.gate_values, max_bins);
    const size_t width = std::min<size_t>(terminal_width(), 120);
    const std::string unit = c.gate == Gate::entropy ? "bits" : get_option(c.recommended, "gate");
    return source_text(c) + histogram_text(bins, unit, c.choice.threshold, width) + quantile_text(c) + "\n" +
           budget_text(c) + threshold_text(c) + "\n" + styled(stdout, Style::bold, c.command) + "\n";
}

json calibration_json(const Calibration & c) {
    json quantile = json::object();
    for (const double q : quantiles) quantile[fmt::format("{}", q)] = decoding::quantile(c.gate_values, q);
    const json recommended = options_json(c.recommended);
    json changed = json::object();
    for (const std::string_view name : changed_options(c.recommended))
        changed[std::string(name)] = recommended[std::string(name)];
    return {{"source", c.is_generated ? "generated answer" : "given text"},
            {"steps", c.gate_values.size()},
            {get_option(c.recommended, "gate"),
             {{"mean", mean_of(c.gate_values)}, {"quantiles", quantile}, {"histogram", histogram_json(c)}}},
            {"target", target_json(c)},
            {"threshold", recommended["threshold"]},
            {"share", c.choice.share},
            {"vanilla", c.vanilla ? mean_json(c.vanilla->vanilla) : json()},
            {"recommended", changed},
            {"command", c.command}};
}

std::string command_with(const Options & options, const std::string & model_path, const std::string & negative_prompt) {
    std::string text = "harp generate -m " + quoted(model_path);
    for (const std::string_view name : changed_options(options))
        text += fmt::format(" {} {}", flag_of(name), get_option(options, name));
    if (!negative_prompt.empty()) text += " --harp-negative-prompt " + quoted(negative_prompt);
    return text;
}

std::string command_without(const std::string & model_path) {
    return "harp generate -m " + quoted(model_path) + " --harp-off";
}

}  // namespace harp::cli
