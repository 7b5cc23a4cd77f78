// harp score: log-likelihood and perplexity of a text, vanilla and HARP over the same tokens, with standard errors.
#include "decoding/score.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "commands.h"
#include "decoding/feed.h"
#include "flags/terminal.h"
#include "model/interrupt.h"
#include "model/report.h"
#include "scoring.h"
#include "sweep.h"

namespace harp::cli {

namespace {

using nlohmann::json;

void print_scores(const decoding::ScoreSummary & s, bool harp_is_on) {
    const auto line = [](const char * name, const decoding::Mean & m) {
        // the standard error of exp(x) is exp(x) times that of x, to first order
        return fmt::format("{:<10} {:>9.4f} {} {:>10.3f} {}\n", name, m.value,
                           standard_error_text(m.standard_error, 8, 4), std::exp(m.value),
                           standard_error_text(std::exp(m.value) * m.standard_error, 8, 3));
    };
    std::string text =
        fmt::format("{:<10} {:>20}  {:>21}\n", "", "nats per token", "perplexity") + line("vanilla", s.vanilla);
    if (harp_is_on) {
        text += line("HARP", s.harp);
        text += fmt::format("difference {:>+9.4f} {} (HARP - vanilla, paired by token; below 0 HARP is better)\n",
                            s.difference.value, standard_error_text(s.difference.standard_error, 8, 4));
        text += fmt::format("hesitated at {} of {} tokens ({:.1f} %)\n", s.n_hesitations, s.n_tokens,
                            100.0 * static_cast<double>(s.n_hesitations) / static_cast<double>(s.n_tokens));
    }
    text += standard_error_note;
    write_out(text);
}

std::vector<decoding::TokenScore> score_text(LoadedModel & loaded, const ScoringText & text,
                                             ScoringProgress & progress) {
    auto scores = decoding::score(
        loaded.pass(), text.tokens, text.window, [&](size_t done, size_t total) { return progress.show(done, total); },
        decoding::negative_prompt_for(loaded.options(), text.negative_prompt));
    progress.clear();
    return scores;
}

/// One score of the text, under one set of options.
int score_once(LoadedModel & loaded, const ScoringText & text, const std::optional<Options> & options, bool as_json) {
    ScoringProgress progress;
    const auto summary = decoding::summarise(score_text(loaded, text, progress));
    if (summary.n_tokens == 0) throw Error(ErrorCode::aborted, "interrupted before a window was complete");
    if (as_json) {
        json output = {{"tokens", summary.n_tokens},
                       {"vanilla", mean_json(summary.vanilla)},
                       {"complete", !interrupt_requested.load()},
                       {"seconds", progress.seconds()},
                       {"window", text.window},
                       {"harp_options", options_json(options)},
                       {"statistics", statistics_json(loaded.pass().statistics())},
                       {"model", model_json(loaded.model(), loaded.params().model.path)},
                       {"build", build_json()}};
        if (options) {
            output["harp"] = mean_json(summary.harp);
            output["difference"] = mean_json(summary.difference);
            output["hesitations"] = summary.n_hesitations;
        }
        write_out(dump(output, 2) + "\n");
    } else {
        print_scores(summary, options.has_value());
    }
    const std::string note = fmt::format("{} tokens{} in {:.1f} s, windows of {}; harp: {}", summary.n_tokens,
                                         interrupt_requested ? " (interrupted)" : "", progress.seconds(), text.window,
                                         options_text(options));
    print_err("{}\n", styled(stderr, Style::dim, note));
    return interrupt_requested ? exit_interrupted : exit_ok;
}

/// A table of scores, one for each combination of the options swept.
int score_sweep(LoadedModel & loaded, const ScoringText & text, const Options & base, std::span<const Axis> axes,
                std::span<const Options> combinations, bool as_json) {
    ScoringProgress progress;
    const auto scores = score_text(loaded, text, progress);
    if (interrupt_requested) stop_interrupted();
    const double vanilla_seconds = progress.seconds();
    const auto vanilla = decoding::summarise(scores);
    const auto rows = run_sweep(loaded, text, combinations, scores);
    const bool is_complete = rows.size() == combinations.size();
    const std::string extent = fmt::format("{}{} of {} combinations", is_complete ? "" : "interrupted: only ",
                                           rows.size(), combinations.size());
    if (as_json) {
        const json output = {{"tokens", vanilla.n_tokens},
                             {"vanilla", mean_json(vanilla.vanilla)},
                             {"combinations", sweep_json(axes, rows)},
                             {"complete", is_complete},
                             {"seconds", progress.seconds()},
                             {"window", text.window},
                             {"harp_options", options_json(base)},
                             {"model", model_json(loaded.model(), loaded.params().model.path)},
                             {"build", build_json()}};
        write_out(dump(output, 2) + "\n");
    } else {
        write_out(sweep_table(axes, vanilla, vanilla_seconds, rows) + (is_complete ? "" : extent + "\n") +
                  standard_error_note + "Combinations that one pass serves have its seconds each.\n");
    }
    const std::string note = fmt::format("{} tokens, {} in {:.1f} s, windows of {}; the other options: {}",
                                         vanilla.n_tokens, extent, progress.seconds(), text.window, options_text(base));
    print_err("{}\n", styled(stderr, Style::dim, note));
    return is_complete ? exit_ok : exit_interrupted;
}

}  // namespace

int score_command(int argc, char ** argv) {
    CommandLine line(
        "score",
        "Log-likelihood and perplexity of a text (-f FILE, -p TEXT or standard input), vanilla and HARP over the same\n"
        "tokens. The text is cut in windows of the context size.",
        "harp score -m model.gguf -f book.txt -c 1024");
    bool as_json = false;
    ScoringFlags flags;
    std::vector<std::string> sweeps;
    line.app.add_flag("--json", as_json, "print one JSON object");
    flags.add_to(line.app);
    line.app
        .add_option("--sweep", sweeps,
                    "NAME=V1,V2,...: score with each value of a HARP option; given again, with each combination")
        ->allow_extra_args(false);
    line.harp.add_to(line.app);
    common_params params;
    if (const auto code = line.parse(argc, argv, params)) return *code;
    const auto options = line.harp.options();
    refuse_speculation(params);
    const std::vector<Axis> axes = parse_sweeps(sweeps);
    for (const Axis & axis : axes) line.harp.refuse(axis.name, "--sweep sets it");
    if (!axes.empty() && !options)
        throw Error(ErrorCode::invalid_option, line.harp.switched_off_by() + " leaves nothing to sweep; leave it out");
    // without HARP there are entropies all the same: of a pass that never hesitates
    Options effective = options.value_or(Options{});
    if (!options) effective.threshold = std::numeric_limits<double>::infinity();
    const std::vector<Options> combinations = combine(effective, axes, "--sweep");
    if (options) line.harp.check_negative_prompt(combinations);
    const std::string prompt = read_prompt(line, params);
    limit_context(params);

    const Options of_pass = axes.empty() ? effective : options_of_pass(combinations);
    LoadedModel loaded(params, of_pass, line.harp.n_ctx_twin_for(of_pass));
    const ScoringText text = read_scoring_text(loaded, prompt, flags, line.harp.negative_prompt(combinations));
    return axes.empty() ? score_once(loaded, text, options, as_json)
                        : score_sweep(loaded, text, *options, axes, combinations, as_json);
}

}  // namespace harp::cli
