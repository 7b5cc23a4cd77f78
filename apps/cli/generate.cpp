// harp generate: one prompt, one answer, streamed; a summary on stderr.
#include <fmt/format.h>

#include <chrono>

#include "commands.h"
#include "interrupt.h"
#include "report.h"
#include "session.h"
#include "terminal.h"
#include "trace.h"

namespace harp::cli {

namespace {

using decoding::GeneratedToken;
using decoding::GenerationResult;
using decoding::StopReason;
using nlohmann::json;

void print_summary(Session & session, const FormattedPrompt & prompt, size_t n_prompt, double prompt_seconds,
                   const GenerationResult & result) {
    ForwardPass & pass = session.pass();
    const Statistics & s = pass.statistics();
    const auto dim = [](const std::string & text) { return styled(stderr, Style::dim, text); };
    const auto percent = [](double part, double whole) { return whole > 0 ? 100.0 * part / whole : 0.0; };
    std::string text =
        fmt::format("\n{} tokens in {:.2f} s ({:.1f} tokens/s); prompt {} tokens in {:.2f} s ({}); ended: {}\n",
                    result.n_generated, result.seconds, result.seconds > 0 ? result.n_generated / result.seconds : 0.0,
                    n_prompt, prompt_seconds, prompt.why, to_string(result.reason));
    if (session.options()) {
        text += fmt::format(
            "hesitated at {} of {} steps ({:.0f} %); second pass {:.2f} s ({:.0f} % of {:.2f} s); schedule {}\n",
            s.hesitations, s.steps, percent(static_cast<double>(s.hesitations), static_cast<double>(s.steps)),
            s.second_pass_seconds, percent(s.second_pass_seconds, s.total_seconds), s.total_seconds,
            schedule_text(pass, *session.options()));
    }
    text += fmt::format("harp: {}; sampler seed {}", options_text(session.options()), session.sampler_seed());
    fmt::print(stderr, "{}\n", dim(text));
}

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
                        "write one JSON line a step: token, entropy, top candidates of each pass");
    line.app.add_flag("--json", as_json, "print one JSON object at the end instead of text");
    line.harp.add_to(line.app);
    common_params params;
    if (const auto code = line.parse(argc, argv, params)) return *code;
    const auto options = line.harp.options();
    const std::string prompt_text = read_prompt(line, params);

    Session session(params, options);
    const FormattedPrompt prompt = format_prompt(session, prompt_text, format);
    const common_sampler_ptr sampler = session.new_sampler();
    Trace trace(trace_path, session.vocab());
    trace.watch(session.pass());
    decoding::Generator generator(session.pass(), *sampler);

    const auto start = std::chrono::steady_clock::now();
    ProgressLine progress;
    const size_t n_prompt =
        generator.set_prompt(session.tokenize(prompt.text, prompt.is_chat), [&](size_t done, size_t total) {
            if (done < total) progress.show(fmt::format("prompt: {} of {} tokens", done, total));
        });
    progress.clear();
    const double prompt_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

    TokenPrinter printer(options ? options->threshold : 0);
    json tokens = json::array();
    const auto result = generator.generate({params.n_predict, params.antiprompt}, [&](const GeneratedToken & token) {
        trace.write(token);
        if (as_json) {
            tokens.push_back(token_json(token));
        } else {
            printer.print(token.piece, token.record);
        }
        return !interrupt_requested;
    });
    if (as_json) {
        const json output = {
            {"text", result.text},
            {"tokens", tokens},
            {"stop_reason", to_string(result.reason)},
            {"prompt",
             {{"tokens", n_prompt}, {"seconds", prompt_seconds}, {"format", prompt.is_chat ? "chat" : "raw"}}},
            {"generated", {{"tokens", result.n_generated}, {"seconds", result.seconds}}},
            {"harp", options_json(options)},
            {"statistics", statistics_json(session.pass().statistics())},
            {"sampler_seed", session.sampler_seed()},
            {"model", model_json(session.model(), params.model.path)},
            {"build", build_json()}};
        write_out(dump(output, 2) + "\n");
    } else {
        printer.finish();
    }
    print_summary(session, prompt, n_prompt, prompt_seconds, result);
    return result.reason == StopReason::interrupted ? exit_interrupted : exit_ok;
}

}  // namespace harp::cli
