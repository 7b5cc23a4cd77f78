// harp score: log-likelihood and perplexity of a text, vanilla and HARP over the same tokens, with standard errors.
#include "decoding/score.h"

#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <limits>

#include "commands.h"
#include "interrupt.h"
#include "report.h"
#include "session.h"
#include "terminal.h"

namespace harp::cli {

namespace {

using nlohmann::json;

json mean_json(const decoding::Mean & mean) {
    return {{"mean", mean.value}, {"standard_error", mean.standard_error}};
}

void print_scores(const decoding::ScoreSummary & s, bool harp_is_on) {
    const auto line = [](const char * name, const decoding::Mean & m) {
        // the standard error of exp(x) is exp(x) times that of x, to first order
        return fmt::format("{:<10} {:>9.4f} ± {:<8.4f} {:>10.3f} ± {:<8.3f}\n", name, m.value, m.standard_error,
                           std::exp(m.value), std::exp(m.value) * m.standard_error);
    };
    std::string text =
        fmt::format("{:<10} {:>20}  {:>21}\n", "", "nats per token", "perplexity") + line("vanilla", s.vanilla);
    if (harp_is_on) {
        text += line("HARP", s.harp);
        text +=
            fmt::format("difference {:>+9.4f} ± {:<8.4f} (HARP - vanilla, paired by token; below 0 HARP is better)\n",
                        s.difference.value, s.difference.standard_error);
        text += fmt::format("hesitated at {} of {} tokens ({:.1f} %)\n", s.n_hesitations, s.n_tokens,
                            100.0 * static_cast<double>(s.n_hesitations) / static_cast<double>(s.n_tokens));
    }
    text += "± is one standard error, tokens taken as independent.\n";
    write_out(text);
}

}  // namespace

int score_command(int argc, char ** argv) {
    CommandLine line(
        "score",
        "Log-likelihood and perplexity of a text (-f FILE, -p TEXT or standard input), vanilla and HARP over the same\n"
        "tokens. The text is cut in windows of the context size.",
        "harp score -m model.gguf -f book.txt -c 1024");
    bool as_json = false;
    long window = 0;
    long max_tokens = 0;
    line.app.add_flag("--json", as_json, "print one JSON object");
    line.app
        .add_option("--window", window, "tokens of a window [2..context size; default the context size, at most 2048]")
        ->check(CLI::Range(2L, 1L << 30));
    line.app.add_option("--max-tokens", max_tokens, "score only the first N tokens [2..; default all]")
        ->check(CLI::Range(2L, 1L << 40));
    line.harp.add_to(line.app);
    common_params params;
    if (const auto code = line.parse(argc, argv, params)) return *code;
    const auto options = line.harp.options();
    refuse_speculation(params);
    const std::string text = read_prompt(line, params);
    if (params.n_ctx == 0) params.n_ctx = 2048;

    // without HARP the observer still sees every row: a pass that never hesitates
    Options effective = options.value_or(Options{});
    if (!options) effective.threshold = std::numeric_limits<double>::infinity();
    Session session(params, effective);
    std::vector<llama_token> tokens = session.tokenize(text, /*parse_special=*/false);
    if (max_tokens > 0 && static_cast<size_t>(max_tokens) < tokens.size())
        tokens.resize(static_cast<size_t>(max_tokens));
    const size_t n_window = window > 0 ? static_cast<size_t>(window) : session.pass().n_ctx_seq();

    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
    ProgressLine progress;
    const auto scores = decoding::score(session.pass(), tokens, n_window, [&](size_t done, size_t total) {
        const double left = seconds() / static_cast<double>(done) * static_cast<double>(total - done);
        progress.show(fmt::format("{} of {} tokens ({:.0f} %), about {:.0f} s left", done, total,
                                  100.0 * static_cast<double>(done) / static_cast<double>(total), left));
        return !interrupt_requested;
    });
    progress.clear();
    const auto summary = decoding::summarise(scores);
    if (as_json) {
        json output = {{"tokens", summary.n_tokens},
                       {"vanilla", mean_json(summary.vanilla)},
                       {"complete", !interrupt_requested.load()},
                       {"seconds", seconds()},
                       {"window", n_window},
                       {"harp_options", options_json(options)},
                       {"statistics", statistics_json(session.pass().statistics())},
                       {"model", model_json(session.model(), params.model.path)},
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
    fmt::print(
        stderr, "{}\n",
        styled(stderr, Style::dim,
               fmt::format("{} tokens{} in {:.1f} s, windows of {}; harp: {}", summary.n_tokens,
                           interrupt_requested ? " (interrupted)" : "", seconds(), n_window, options_text(options))));
    return interrupt_requested ? exit_interrupted : exit_ok;
}

}  // namespace harp::cli
