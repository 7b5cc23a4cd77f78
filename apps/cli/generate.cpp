// harp generate: one prompt, one answer, streamed; a summary on standard error.
#include <fmt/format.h>

#include <utility>

#include "beams.h"
#include "commands.h"
#include "flags/terminal.h"
#include "model/interrupt.h"
#include "model/loaded_model.h"
#include "model/report.h"
#include "trace.h"

namespace harp::cli {

namespace {

using decoding::GeneratedToken;
using decoding::GenerationResult;
using decoding::StopReason;
using nlohmann::json;

void print_summary(LoadedModel & loaded, const FormattedPrompt & prompt, const GenerationResult & result,
                   const decoding::Drafter * drafter) {
    std::string text =
        fmt::format("\n{} tokens in {:.2f} s ({:.1f} tokens/s); prompt {} tokens in {:.2f} s ({}); ended: {}\n",
                    result.n_generated, result.seconds, result.seconds > 0 ? result.n_generated / result.seconds : 0.0,
                    result.n_prompt, result.prompt_seconds, prompt.why, to_string(result.reason));
    text += hesitation_text(loaded.pass(), loaded.options());
    text += speculation_text(drafter);
    text += fmt::format("harp: {}; sampler seed {}", options_text(loaded.options()), loaded.sampler_seed());
    print_err("{}\n", styled(stderr, Style::dim, text));
}

/// Pause tokens (arXiv 2310.02226), at inference only: text before the answer whose predictions are not used.
struct PauseFlags {
    uint32_t n = 0;
    std::string text = ".";

    void add_to(CLI::App & app) {
        const char * group = "Pause tokens (the paper's gains need a model trained with them)";
        app.add_option("--pause", n, "append N pause texts to the prompt, before the answer [0..4096]")
            ->check(CLI::Range(0U, 4096U))
            ->capture_default_str()
            ->group(group);
        app.add_option("--pause-text", text, "text of one pause")->capture_default_str()->group(group);
    }
};

}  // namespace

int generate_command(int argc, char ** argv) {
    CommandLine line(
        "generate",
        "Answers or continues a prompt (-p TEXT, -f FILE or standard input). Tokens stream to standard output;\n"
        "hesitating ones are coloured by entropy on a terminal. The summary goes to standard error.",
        "harp generate -m model.gguf -p \"Name three rivers.\" --harp-threshold 2 --trace steps.jsonl");
    std::string format = "auto";
    std::string trace_path;
    bool as_json = false;
    add_format_flag(line.app, format);
    line.app.add_option("--trace", trace_path,
                        "write one JSON line per step: token, entropy, top candidates of each pass");
    line.app.add_flag("--json", as_json, "print one JSON object at the end instead of text");
    BeamFlags beams;
    beams.add_to(line.app, /*prints_several=*/true);
    PauseFlags pause;
    pause.add_to(line.app);
    line.harp.add_to(line.app);
    common_params params;
    if (const auto code = line.parse(argc, argv, params)) return *code;
    const auto options = line.harp.options();
    if (options) line.harp.check_negative_prompt({&*options, 1});
    const std::string prompt_text = read_prompt(line, params);
    beams.prepare(params, options);
    if (beams.is_on() && !trace_path.empty())
        throw Error(ErrorCode::invalid_option,
                    "option '--trace': not with --beams; --json has the records of each token");

    LoadedModel loaded(params, options, line.harp.n_ctx_twin_for(options));
    loaded.check_generates();
    const FormattedPrompt prompt = format_prompt(loaded, prompt_text, format);
    auto prompt_tokens = loaded.tokenize(prompt.text, prompt.is_chat);
    append_pauses(prompt_tokens, loaded.vocab(), pause.n, pause.text);
    const auto negative_prompt = negative_prompt_of(loaded, line.harp.negative_prompt(), format);
    if (beams.is_on()) {
        return generate_beams(loaded, prompt,
                              {.prompt = prompt_tokens, .limits = {}, .negative_prompt = negative_prompt}, beams,
                              as_json);
    }
    decoding::Sampler sampler = loaded.new_sampler();
    Trace trace(trace_path, loaded.vocab());
    trace.watch(loaded.pass());
    ProgressLine progress;
    if (params.speculative.has_dft()) progress.show("loading the draft model");
    const auto drafter = decoding::Drafter::make(loaded.pass(), loaded.params());
    decoding::Generator generator(loaded.pass(), drafter.get());

    // streamed text shows progress by itself, if somebody sees it
    const bool shows_count = as_json || (is_terminal(stderr) && !is_terminal(stdout));
    progress.show(fmt::format("prompt: {} tokens", prompt_tokens.size()));
    const auto on_prompt = [&](size_t done, size_t total) {
        if (done == total) return progress.clear();
        progress.show(fmt::format("prompt: {} of {} tokens", done, total));
    };
    TokenPrinter printer;
    json tokens = json::array();
    const auto on_token = [&, n = 0](const GeneratedToken & token) mutable {
        trace.write(token);
        if (shows_count) progress.show(fmt::format("answering: {} tokens", ++n));
        if (as_json) {
            tokens.push_back(token_json(token.id, token.piece, token.record));
        } else {
            printer.print(token.piece, token.record);
        }
        return !interrupt_requested;
    };
    const GenerationResult result = generator.answer({.prompt = std::move(prompt_tokens),
                                                      .limits = {params.n_predict, params.antiprompt},
                                                      .sampler = std::move(sampler),
                                                      .negative_prompt = negative_prompt},
                                                     on_token, on_prompt);
    progress.clear();
    if (as_json) {
        const json output = {{"text", result.text},
                             {"tokens", tokens},
                             {"stop_reason", to_string(result.reason)},
                             {"prompt", prompt_json(prompt, result.n_prompt)},
                             {"prompt_seconds", result.prompt_seconds},
                             {"generated", {{"tokens", result.n_generated}, {"seconds", result.seconds}}},
                             {"harp", options_json(options)},
                             {"statistics", statistics_json(loaded.pass().statistics())},
                             {"speculation", speculation_json(drafter.get())},
                             {"sampler_seed", loaded.sampler_seed()},
                             {"model", model_json(loaded.model(), params.model.path)},
                             {"build", build_json()}};
        write_out(dump(output, 2) + "\n");
    } else {
        printer.finish();
    }
    print_summary(loaded, prompt, result, drafter.get());
    return result.reason == StopReason::interrupted ? exit_interrupted : exit_ok;
}

}  // namespace harp::cli
