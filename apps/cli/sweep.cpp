#include "sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "model/report.h"

namespace harp::cli {

namespace {

using nlohmann::json;

constexpr size_t max_combinations = 200;

double share_of(const decoding::ScoreSummary & s) {
    return s.n_tokens > 0 ? static_cast<double>(s.n_hesitations) / static_cast<double>(s.n_tokens) : 0;
}

}  // namespace

Axis make_axis(std::string name, const std::string & values) {
    Axis axis{std::move(name), {}};
    for (size_t begin = 0; begin <= values.size();) {
        const size_t end = std::min(values.find(',', begin), values.size());
        axis.values.push_back(values.substr(begin, end - begin));
        begin = end + 1;
    }
    return axis;
}

std::vector<Axis> parse_sweeps(const std::vector<std::string> & sweeps) {
    // without schedule, which changes only the cost
    constexpr std::array names =
        std::to_array<std::string_view>({"gate", "threshold", "beta", "plausibility", "view", "view_tokens",
                                         "perturbation", "strength", "reframings", "scope", "redraw", "seed"});
    std::vector<Axis> axes;
    for (const std::string & sweep : sweeps) {
        const size_t equals = sweep.find('=');
        if (equals == std::string::npos || equals + 1 == sweep.size()) {
            throw Error(ErrorCode::invalid_option,
                        fmt::format("option '--sweep': '{}'; allowed: NAME=VALUE,VALUE,...", sweep));
        }
        Axis axis = make_axis(sweep.substr(0, equals), sweep.substr(equals + 1));
        if (std::find(names.begin(), names.end(), axis.name) == names.end()) {
            throw Error(ErrorCode::invalid_option, fmt::format("option '--sweep': no option '{}' to sweep; allowed: {}",
                                                               axis.name, fmt::join(names, ", ")));
        }
        if (std::any_of(axes.begin(), axes.end(), [&](const Axis & other) { return other.name == axis.name; }))
            throw Error(ErrorCode::invalid_option, fmt::format("option '--sweep': '{}' is given twice", axis.name));
        axes.push_back(std::move(axis));
    }
    return axes;
}

std::vector<Options> combine(const Options & base, std::span<const Axis> axes, const std::string & flag) {
    size_t n = 1;
    for (const Axis & axis : axes) n *= axis.values.size();
    if (n > max_combinations) {
        throw Error(ErrorCode::invalid_option,
                    fmt::format("option '{}': {} combinations; allowed: 1..{}", flag, n, max_combinations));
    }
    std::vector<Options> combinations = {base};
    for (const Axis & axis : axes) {
        std::vector<Options> extended;
        for (const Options & options : combinations) {
            for (const std::string & value : axis.values) {
                Options & added = extended.emplace_back(options);
                naming_flag(flag, [&] { set_option(added, axis.name, value); });
            }
        }
        combinations = std::move(extended);
    }
    for (const Options & options : combinations) naming_flag(flag, [&] { validate(options); });
    return combinations;
}

Options options_of_pass(std::span<const Options> combinations) {
    Options options;
    options.threshold = std::numeric_limits<double>::infinity();
    options.schedule = combinations.front().schedule;
    for (const Options & other : combinations) options.reframings = std::max(options.reframings, other.reframings);
    return options;
}

std::vector<decoding::SweepRow> run_sweep(LoadedModel & loaded, const ScoringText & text,
                                          std::span<const Options> combinations,
                                          const std::vector<decoding::TokenScore> & vanilla) {
    ScoringProgress progress;
    const auto on_progress = [&](size_t done, size_t total, size_t pass, size_t n_passes) {
        return progress.show(pass * total + done, n_passes * total);
    };
    return decoding::sweep(loaded.pass(), text.tokens, text.window, combinations, vanilla, on_progress,
                           text.negative_prompt);
}

std::string sweep_table(std::span<const Axis> axes, const decoding::ScoreSummary & vanilla, double vanilla_seconds,
                        std::span<const decoding::SweepRow> rows) {
    const auto figures = [](const decoding::Mean & mean) {
        return fmt::format("{:>8.4f} {}", mean.value, standard_error_text(mean.standard_error, 7, 4));
    };
    std::string head;
    std::vector<size_t> widths;
    for (const Axis & axis : axes) {
        size_t width = std::max<size_t>(axis.name.size(), axes.front().name == axis.name ? 7 : 0);  // "vanilla"
        for (const std::string & value : axis.values) width = std::max(width, value.size());
        widths.push_back(width);
        head += fmt::format("{:<{}}  ", axis.name, width);
    }
    const std::string indent(head.size() - widths.front(), ' ');
    std::string text = fmt::format("{}{:>9}  {:>18}  {:>18}  {:>10}  {:>8}\n", head, "hesitates", "nats per token",
                                   "HARP - vanilla", "perplexity", "seconds");
    text += fmt::format("{:<{}}{}{:>9}  {}  {:>18}  {:>10.3f}  {:>8.1f}\n", "vanilla", widths.front(), indent, "",
                        figures(vanilla.vanilla), "", std::exp(vanilla.vanilla.value), vanilla_seconds);
    for (const decoding::SweepRow & row : rows) {
        for (size_t i = 0; i < axes.size(); ++i)
            text += fmt::format("{:<{}}  ", get_option(row.options, axes[i].name), widths[i]);
        const decoding::ScoreSummary & s = row.summary;
        text += fmt::format("{:>7.1f} %  {}  {:>+8.4f} {}  {:>10.3f}  {:>8.1f}\n", 100 * share_of(s), figures(s.harp),
                            s.difference.value, standard_error_text(s.difference.standard_error, 7, 4),
                            std::exp(s.harp.value), row.seconds);
    }
    return text;
}

json sweep_json(std::span<const Axis> axes, std::span<const decoding::SweepRow> rows) {
    json result = json::array();
    for (const decoding::SweepRow & row : rows) {
        const json all = options_json(row.options);
        json options = json::object();
        for (const Axis & axis : axes) options[axis.name] = all[axis.name];
        result.push_back({{"options", options},
                          {"hesitations", row.summary.n_hesitations},
                          {"hesitation_share", share_of(row.summary)},
                          {"harp", mean_json(row.summary.harp)},
                          {"difference", mean_json(row.summary.difference)},
                          {"perplexity", std::exp(row.summary.harp.value)},
                          {"seconds", row.seconds}});
    }
    return result;
}

}  // namespace harp::cli
