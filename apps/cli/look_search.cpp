#include "look_search.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

#include "calibration_report.h"
#include "error_text.h"
#include "flags/files.h"
#include "flags/terminal.h"
#include "model/interrupt.h"
#include "model/report.h"
#include "sweep.h"

namespace harp::cli {

namespace {

using decoding::Metric;
using decoding::TrialExample;
using nlohmann::json;

constexpr size_t least_examples = 20;  // of each half
constexpr size_t most_sets = 1000;
constexpr double significance = 0.05;

constexpr const char * example_format =
    R"({"context": TEXT, "continuation": TEXT} or {"context": TEXT, "choices": [TEXT, ...], "answer": INDEX})";

/// "last:10" or "masked:0.3": a view and its number.
void set_view(Options & options, const std::string & text) {
    const size_t colon = text.find(':');
    set_option(options, "view", text.substr(0, colon));
    if (colon == std::string::npos) return;
    if (options.view == View::guidance)
        throw Error(ErrorCode::invalid_option, fmt::format("view '{}': guidance has no number", text));
    set_option(options, options.view == View::last ? "view_tokens" : "strength", text.substr(colon + 1));
}

/// The tokens of a context and of what continues it, cut where the context ends; spaces at its end belong to the continuation.
std::pair<std::vector<llama_token>, std::vector<llama_token>> tokenize_pair(LoadedModel & loaded, std::string context,
                                                                            std::string continuation) {
    const size_t end = context.find_last_not_of(' ');
    const size_t kept = end == std::string::npos ? 0 : end + 1;
    continuation = context.substr(kept) + continuation;
    context.resize(kept);
    auto head = loaded.tokenize(context, /*parse_special=*/false);
    const auto all = loaded.tokenize(context + continuation, /*parse_special=*/false);
    const auto border = static_cast<std::ptrdiff_t>(std::min(head.size(), all.size()));
    return {head, {all.begin() + border, all.end()}};
}

/// "continuation", or a choice's place: "choices[1]".
std::string name_of_continuation(bool is_choice, size_t i) {
    return is_choice ? fmt::format("choices[{}]", i) : "continuation";
}

TrialExample example_of(LoadedModel & loaded, const json & line) {
    const auto refuse = [](const std::string & why) { throw Error(ErrorCode::invalid_input, why); };
    const auto check_text = [&](const std::string & name, const json & value) {
        if (!value.is_string()) refuse(fmt::format("{}: {}; allowed: a text", name, shortened(dump(value, -1))));
    };
    // -c, though the pool that examples share is larger; the last token is not read
    const auto most_tokens = static_cast<size_t>(loaded.params().n_ctx / loaded.params().n_parallel) + 1;
    const bool is_choice = line.contains("choices");
    const bool is_known = line.contains("context") && line.contains("continuation") != is_choice &&
                          (line.contains("answer") || !is_choice);
    if (!is_known) refuse(std::string("not ") + example_format);
    check_text("context", line["context"]);
    std::vector<std::string> continuations;
    TrialExample example;
    if (is_choice) {
        const json & choices = line["choices"];
        const json & answer = line["answer"];
        if (!choices.is_array())
            refuse(fmt::format("choices: {}; allowed: a list of texts", shortened(dump(choices, -1))));
        if (choices.size() < 2)  // of one choice the answer is always the most likely
            refuse(fmt::format("choices: {}; allowed: 2 or more", choices.size()));
        for (size_t i = 0; i < choices.size(); ++i) {
            check_text(name_of_continuation(is_choice, i), choices[i]);
            continuations.push_back(choices[i]);
        }
        if (!answer.is_number_unsigned() || answer.get<uint64_t>() >= choices.size())
            refuse(fmt::format("answer: {}; allowed: 0..{}", shortened(dump(answer, -1)), choices.size() - 1));
        example.answer = answer;
    } else {
        check_text("continuation", line["continuation"]);
        continuations.push_back(line["continuation"]);
    }
    for (size_t i = 0; i < continuations.size(); ++i) {
        auto [head, tail] = tokenize_pair(loaded, line["context"], continuations[i]);
        if (head.empty()) refuse("context: it has no tokens");
        if (tail.empty()) refuse(name_of_continuation(is_choice, i) + ": it has no tokens of its own");
        if (head.size() + tail.size() > most_tokens) {
            throw Error(ErrorCode::invalid_input,
                        fmt::format("context and continuation have {} tokens; allowed: 2..{} (a larger -c allows more)",
                                    head.size() + tail.size(), most_tokens));
        }
        if (!example.context.empty() && head != example.context)
            throw Error(ErrorCode::invalid_input, "the context has other tokens with each choice");
        example.context = std::move(head);
        example.continuations.push_back(std::move(tail));
    }
    return example;
}

std::vector<TrialExample> read_examples(LoadedModel & loaded, const std::string & path) {
    std::ifstream file = open_file("examples", path);
    std::vector<TrialExample> examples;
    std::string line;
    for (size_t number = 1; std::getline(file, line); ++number) {
        if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
        try {
            examples.push_back(example_of(loaded, json::parse(line)));
        } catch (const json::exception &) {  // not JSON, not UTF-8, or a number that is too large
            throw Error(ErrorCode::invalid_input, fmt::format("examples '{}', line {}: not JSON: {}; allowed: {}", path,
                                                              number, shortened(to_valid_utf8(line)), example_format));
        } catch (const Error & error) {
            throw Error(error.code(), fmt::format("examples '{}', line {}: {}", path, number, error.what()));
        }
    }
    return examples;
}

/// A text's windows, each to be predicted from its first token on.
std::vector<TrialExample> windows_of(LoadedModel & loaded, const std::string & text, const ScoringFlags & flags) {
    constexpr long default_window = 256;
    ScoringFlags own = flags;
    if (own.window == 0) own.window = default_window;
    const ScoringText read = read_scoring_text(loaded, text, own);
    std::vector<TrialExample> examples;
    const auto window = static_cast<std::ptrdiff_t>(read.window);
    for (auto begin = read.tokens.begin(); read.tokens.end() - begin >= window; begin += window) {
        examples.push_back({{*begin}, {{begin + 1, begin + window}}});
    }
    return examples;
}

std::vector<decoding::TrialResult> run_part(LoadedModel & loaded, std::span<const TrialExample> examples,
                                            std::span<const Options> sets, Metric metric, const std::string & name,
                                            const std::vector<llama_token> & negative_prompt) {
    ScoringProgress progress(name + ": ", "readings");
    auto results = decoding::run_trial(
        loaded.pass(), examples, sets, metric, [&](size_t done, size_t total) { return progress.show(done, total); },
        negative_prompt);
    if (results.empty()) stop_interrupted();
    return results;
}

Options vanilla_like(const Options & options) {
    Options vanilla = options;
    vanilla.threshold = std::numeric_limits<double>::infinity();
    return vanilla;
}

std::string figure(Metric metric, double value) {
    return metric == Metric::accuracy ? fmt::format("{:.1f} %", 100 * value) : fmt::format("{:.4f}", value);
}
std::string difference_figure(Metric metric, double value) {
    return metric == Metric::accuracy ? fmt::format("{:+.1f}", 100 * value) : fmt::format("{:+.4f}", value);
}
const char * unit(Metric metric) {
    return metric == Metric::accuracy ? "points of accuracy" : "nats per token";
}

/// "2" bits, or "ratio 0.3".
std::string threshold_of(const Options & o) {
    return (o.gate == Gate::entropy ? "" : get_option(o, "gate") + " ") + get_option(o, "threshold");
}

/// The options that the search chose.
std::string set_text(const Options & o) {
    std::string text = "view " + get_option(o, "view");
    if (o.view == View::last) text += fmt::format(" {}", o.view_tokens);
    if (has_masks(o.view)) text += fmt::format(", strength {}", get_option(o, "strength"));
    text += fmt::format(", threshold {}, beta {}", threshold_of(o), get_option(o, "beta"));
    if (o.beta > 1) text += fmt::format(", plausibility {}", get_option(o, "plausibility"));
    return text;
}

/// The best of each view, one line each.
std::string views_text(const Search & search) {
    std::map<std::string, const decoding::TrialResult *> best;
    std::vector<std::string> order;
    for (const decoding::TrialResult & result : search.tries) {
        const Options & o = result.options;
        const std::string view = o.view == View::last ? fmt::format("last {}", o.view_tokens)
                                 : has_masks(o.view)
                                     ? fmt::format("{} {}", get_option(o, "view"), get_option(o, "strength"))
                                     : get_option(o, "view");
        const decoding::TrialResult *& known = best[view];
        if (known == nullptr) order.push_back(view);
        if (known == nullptr || result.mean() > known->mean()) known = &result;
    }
    std::string text = fmt::format("{:<16} {:>9} {:>6} {:>12}  {:>10}  {:>11}\n", "view, its best", "threshold", "beta",
                                   "plausibility", "hesitates", "- vanilla");
    for (const std::string & view : order) {
        const decoding::TrialResult & r = *best[view];
        text += fmt::format("{:<16} {:>9} {:>6} {:>12}  {:>8.1f} %  {:>11}\n", view, threshold_of(r.options),
                            get_option(r.options, "beta"), get_option(r.options, "plausibility"),
                            100 * r.hesitation_share(), difference_figure(search.metric, r.mean() - search.vanilla));
    }
    return text;
}

}  // namespace

void SearchFlags::add_to(CLI::App & app) {
    const char * group = "Which second look helps (without a target)";
    app.add_option(
           "--examples", examples,
           fmt::format("file of at least {} examples, one JSON object a line: {}", 2 * least_examples, example_format))
        ->type_name("FILE")
        ->group(group);
    app.add_option("--metric", metric, "what should grow [default accuracy of examples, log-likelihood of a text]")
        ->check(CLI::IsMember({"accuracy", "log-likelihood"}))
        ->group(group);
    app.add_option("--views", views, "views to try, with their strength or number of tokens")
        ->capture_default_str()
        ->group(group);
    app.add_option("--gates", gates, "gates to try: entropy, ratio")->capture_default_str()->group(group);
    app.add_option("--thresholds", thresholds, "thresholds to try with the gate entropy, bits")
        ->capture_default_str()
        ->group(group);
    app.add_option("--ratio-thresholds", ratio_thresholds, "thresholds to try with the gate ratio")
        ->capture_default_str()
        ->group(group);
    app.add_option("--betas", betas, "betas to try")->capture_default_str()->group(group);
    app.add_option("--plausibilities", plausibilities, "plausibilities to try with betas above 1")
        ->capture_default_str()
        ->group(group);
    app.add_option("--write-preset", preset, "write the options to a file, for --harp-preset, if they help")
        ->type_name("FILE")
        ->group(group);
}

std::vector<Options> SearchFlags::sets(const Options & base) const {
    const Axis all_plausibilities = make_axis("plausibility", plausibilities);
    std::vector<Options> sets;
    for (const std::string & view : make_axis("view", views).values) {
        for (const std::string & gate : make_axis("gate", gates).values) {
            Options of_view = base;
            naming_flag(fmt::format("option '--views': {}", view), [&] {
                set_view(of_view, view);
                validate(of_view);
            });
            naming_flag("option '--gates'", [&] { set_option(of_view, "gate", gate); });
            const bool is_ratio = of_view.gate == Gate::ratio;
            const std::array axes = {make_axis("threshold", is_ratio ? ratio_thresholds : thresholds),
                                     make_axis("beta", betas), all_plausibilities};
            const std::string flags = is_ratio ? "--ratio-thresholds" : "--thresholds";
            for (const Options & set : combine(of_view, axes, flags + ", --betas and --plausibilities")) {
                const bool is_double =
                    set.beta < 1 && get_option(set, "plausibility") != all_plausibilities.values.front();
                if (!set.is_vanilla() && !is_double) sets.push_back(set);
            }
        }
    }
    if (sets.empty() || sets.size() > most_sets) {
        const char * why = sets.empty() ? " (with beta 1 each is without HARP)" : "";
        throw Error(ErrorCode::invalid_option,
                    fmt::format("{} sets of options to try{}; allowed: 1..{}", sets.size(), why, most_sets));
    }
    return sets;
}

Search run_search(LoadedModel & loaded, const std::string & text, const ScoringFlags & scoring,
                  const SearchFlags & flags, std::vector<Options> sets, const std::string & negative_prompt) {
    const bool is_text = flags.examples.empty();
    const auto examples = is_text ? windows_of(loaded, text, scoring) : read_examples(loaded, flags.examples);
    if (examples.size() < 2 * least_examples) {
        throw Error(
            ErrorCode::invalid_input,
            fmt::format("{} {}; at least {} are needed, a half to choose on and a half to check", examples.size(),
                        is_text ? "windows of the text (--window)" : "examples", 2 * least_examples));
    }
    Search search;
    search.metric =
        (flags.metric.empty() ? is_text : flags.metric == "log-likelihood") ? Metric::log_likelihood : Metric::accuracy;
    const auto negative_tokens = negative_prompt_of(loaded, negative_prompt, "raw");
    if (is_text && negative_tokens.empty())
        std::erase_if(sets, [](const Options & o) { return o.view == View::guidance; });  // a text has no prompt
    if (sets.empty()) {
        throw Error(ErrorCode::invalid_option,
                    "option '--views': guidance needs --examples or --harp-negative-prompt: a text has no prompt");
    }
    const auto middle = examples.begin() + static_cast<std::ptrdiff_t>(examples.size() / 2);
    const std::vector<TrialExample> development(examples.begin(), middle);
    const std::vector<TrialExample> check(middle, examples.end());
    search.n_development = development.size();
    search.n_check = check.size();

    sets.push_back(vanilla_like(sets.front()));
    search.n_readings = decoding::count_readings(sets);
    search.tries = run_part(loaded, development, sets, search.metric, "choosing", negative_tokens);
    const std::vector<double> vanilla = std::exchange(search.tries.back().values, {});
    search.tries.pop_back();
    std::vector<std::vector<double>> values;
    for (const decoding::TrialResult & result : search.tries) values.push_back(result.values);
    search.best = decoding::best_of(values, vanilla);
    search.vanilla = std::accumulate(vanilla.begin(), vanilla.end(), 0.0) / static_cast<double>(vanilla.size());
    search.recommended = search.tries[search.best.index].options;

    const std::array finalists = {search.recommended, vanilla_like(search.recommended)};
    const auto checked = run_part(loaded, check, finalists, search.metric, "checking the best", negative_tokens);
    search.check = decoding::paired_difference(checked[0].values, checked[1].values);
    search.check_best = checked[0].mean();
    search.check_vanilla = checked[1].mean();
    search.hesitation_share = checked[0].hesitation_share();
    search.helps = search.best.p_value <= significance && search.check.low() > 0;
    const std::string & path = loaded.params().model.path;
    if (search.recommended.view == View::guidance) search.negative_prompt = negative_prompt;
    search.command =
        search.helps ? command_with(search.recommended, path, search.negative_prompt) : command_without(path);
    return search;
}

std::string search_text(const Search & s) {
    const decoding::TrialResult & best = s.tries[s.best.index];
    std::string text = fmt::format(
        "{} sets of options tried on {} examples, in {} reading{} of each; vanilla: {}\n\n{}\n", s.tries.size(),
        s.n_development, s.n_readings, s.n_readings == 1 ? "" : "s", figure(s.metric, s.vanilla), views_text(s));
    text += fmt::format("best: {}\n{} {}, p = {:.2g} (corrected for {} tries)\n\n", set_text(s.recommended),
                        difference_figure(s.metric, best.mean() - s.vanilla), unit(s.metric), s.best.p_value,
                        s.tries.size());
    text += fmt::format("on {} other examples: {} instead of {}, a difference of {} {}, 95 % interval {} to {}",
                        s.n_check, figure(s.metric, s.check_best), figure(s.metric, s.check_vanilla),
                        difference_figure(s.metric, s.check.mean), unit(s.metric),
                        difference_figure(s.metric, s.check.low()), difference_figure(s.metric, s.check.high()));
    text +=
        s.metric == Metric::accuracy ? fmt::format(" ({} gained, {} lost)\n", s.check.n_better, s.check.n_worse) : "\n";
    text += fmt::format("it hesitates at {:.1f} % of the steps\n\n", 100 * s.hesitation_share);
    text += s.helps ? "It helps: use\n" : "Nothing was seen to help: leave it off\n";
    return text + styled(stdout, Style::bold, s.command) + "\n";
}

json search_json(const Search & s) {
    json tries = json::array();
    for (const decoding::TrialResult & r : s.tries) {
        tries.push_back({{"options", options_json(r.options)},
                         {"difference", r.mean() - s.vanilla},
                         {"steps", r.n_steps},
                         {"hesitations", r.n_hesitations}});
    }
    return {{"metric", s.metric == Metric::accuracy ? "accuracy" : "log-likelihood"},
            {"development", {{"examples", s.n_development}, {"vanilla", s.vanilla}, {"readings", s.n_readings}}},
            {"tries", tries},
            {"best", {{"index", s.best.index}, {"p_value", s.best.p_value}}},
            {"check",
             {{"examples", s.n_check},
              {"vanilla", s.check_vanilla},
              {"best", s.check_best},
              {"difference", s.check.mean},
              {"standard_error", s.check.standard_error},
              {"interval", {s.check.low(), s.check.high()}},
              {"gained", s.check.n_better},
              {"lost", s.check.n_worse},
              {"hesitation_share", s.hesitation_share}}},
            {"helps", s.helps},
            {"command", s.command}};
}

void write_preset(const Search & search, const std::string & path, const json & about) {
    json harp = options_json(search.recommended);
    harp.erase("enabled");
    if (!search.negative_prompt.empty()) harp["negative_prompt"] = search.negative_prompt;
    write_file("preset", path, dump({{"harp", harp}, {"found_by", about}}, 2) + "\n");
}

}  // namespace harp::cli
