// harp calibrate: which second look helps (look_search.h); or, with a target, a threshold for this model, from the entropies (or
// ratios: --harp-gate) it has on a text or in its own answer. docs/CALIBRATION.md explains the figures.
#include <fmt/format.h>

#include <array>
#include <limits>

#include "calibration_report.h"
#include "commands.h"
#include "flags/files.h"
#include "flags/terminal.h"
#include "forward/batch_rows.h"
#include "look_search.h"
#include "model/interrupt.h"
#include "model/report.h"
#include "scoring.h"
#include "sweep.h"

namespace harp::cli {

namespace {

using nlohmann::json;

constexpr double default_share = 0.2;

struct Flags {
    std::optional<double> share;
    std::optional<double> cost;
    int n_generate = 0;
    std::string format = "auto";
    bool as_json = false;
    ScoringFlags scoring;
    SearchFlags search;

    void add_to(CLI::App & app);
    /// Whether a threshold is looked for, and not a second look that helps.
    [[nodiscard]] bool has_target() const { return share || cost || n_generate > 0; }
};

void Flags::add_to(CLI::App & app) {
    const char * group = "A threshold, by how often or at what cost";
    app.add_option("--target-share", share, "share of the steps that should hesitate [0..1; default 0.2]")
        ->check(number_in(0, 1))
        ->group(group);
    app.add_option(
           "--target-cost", cost,
           "time per token, over vanilla's, that HARP may cost: the share it buys, or --target-share if that is "
           "less; batches are timed for it [1..100]")
        ->check(number_in(1, 100))
        ->group(group);
    auto * generate = app.add_option("--generate", n_generate,
                                     "answer the text as a prompt, N tokens, and take the steps of that answer [1..]")
                          ->check(CLI::Range(1, 1 << 20))
                          ->group(group);
    add_format_flag(app, format);
    app.get_option("--format")->needs(generate)->group(group);
    app.add_flag("--json", as_json, "print one JSON object");
    scoring.add_to(app);
    app.get_option("--window")
        ->description(
            "tokens of a window [2..context size; default 256 where a second look is chosen, else as in harp score]")
        ->excludes(generate);
    app.get_option("--max-tokens")->excludes(generate);
    search.add_to(app);
    for (const char * of_text : {"--window", "--max-tokens"}) app.get_option(of_text)->excludes("--examples");
    for (const char * target : {"--target-share", "--target-cost", "--generate"}) {
        for (const char * of_search : {"--examples", "--metric", "--views", "--gates", "--thresholds",
                                       "--ratio-thresholds", "--betas", "--plausibilities", "--write-preset"}) {
            app.get_option(of_search)->excludes(app.get_option(target));
        }
    }
}

/// Where the steps are from.
struct Source {
    ScoringText text;                          // or, of an answer, the prompt's tokens
    std::vector<decoding::TokenScore> scores;  // of a given text
    FormattedPrompt prompt;                    // of an answer
};

Source take_text(LoadedModel & loaded, const std::string & given, const ScoringFlags & flags, Calibration & c) {
    Source source{read_scoring_text(loaded, given, flags), {}, {}};
    ScoringProgress progress;
    source.scores = decoding::score(loaded.pass(), source.text.tokens, source.text.window,
                                    [&](size_t done, size_t total) { return progress.show(done, total); });
    progress.clear();
    if (interrupt_requested) stop_interrupted();
    for (const decoding::TokenScore & score : source.scores) c.gate_values.push_back(score.record.gate(c.gate));
    c.vanilla = decoding::summarise(source.scores);
    return source;
}

/// Takes the steps of an answer to the text; the step that ended it, if one did, is not among them.
Source take_answer(LoadedModel & loaded, const std::string & given, const Flags & flags, Calibration & c) {
    Source source;
    source.prompt = format_prompt(loaded, given, flags.format);
    source.text.tokens = loaded.tokenize(source.prompt.text, source.prompt.is_chat);
    c.is_generated = true;
    decoding::Generator generator(loaded.pass());
    ProgressLine progress;
    progress.show("reading the prompt");
    const auto result = generator.answer(
        {.prompt = source.text.tokens,
         .limits = {flags.n_generate, loaded.params().antiprompt},
         .sampler = loaded.new_sampler()},
        [&](const decoding::GeneratedToken & token) {
            c.gate_values.push_back(token.record.gate(c.gate));
            progress.show(fmt::format("answering: {} of {} tokens", c.gate_values.size(), flags.n_generate));
            return !interrupt_requested;
        });
    if (result.reason == decoding::StopReason::interrupted) stop_interrupted();
    if (c.gate_values.empty())
        throw Error(ErrorCode::invalid_input, "the model ended its answer at once; give another text, or --ignore-eos");
    return source;
}

/// Times batches of tokens from an empty cache. Two rows give logits of both, as a fused step; more, as a catch-up, of the
/// last. Sizes take turns, so that a slow moment of the machine does not fall on one of them.
forward::CostModel measure_costs(ForwardPass & pass, const std::vector<llama_token> & tokens) {
    forward::CostModel costs;
    const llama_seq_id sequence = 0;
    constexpr int n_rounds = 6;
    ProgressLine progress;
    for (int round = 0; round < n_rounds; ++round) {
        progress.show(fmt::format("timing batches, round {} of {}", round + 1, n_rounds));
        if (interrupt_requested) stop_interrupted();
        for (const uint32_t n : {1U, 2U, 4U, 8U, 16U, 32U}) {
            if (n > pass.n_batch() || n > pass.n_ctx_seq()) continue;
            forward::BatchRows rows;
            for (size_t i = 0; i < n; ++i) {
                rows.add(tokens[i % tokens.size()], static_cast<llama_pos>(i), {&sequence, 1}, i + 1 == n || n == 2);
            }
            pass.memory_clear(false);
            const double before = pass.statistics().llama_seconds;
            pass.decode(rows.view());
            // the first round warms up
            if (round > 0) costs.add_call(n, pass.statistics().llama_seconds - before);
        }
    }
    pass.memory_clear(false);
    if (!costs.is_measured(2))
        throw Error(ErrorCode::invalid_option, "option '--target-cost': needs batches of two rows or more (-b, -c)");
    return costs;
}

void apply_budget(Calibration & c, LoadedModel & loaded, const std::vector<llama_token> & tokens, double budget) {
    c.costs = measure_costs(loaded.pass(), tokens);
    c.budget = budget;
    const auto bought = decoding::share_for_budget(c.costs, budget);
    if (!bought) {
        const double least = std::min(decoding::lazy_cost(c.costs, 0.001), decoding::fused_cost(c.costs));
        throw Error(
            ErrorCode::invalid_option,
            fmt::format("option '--target-cost': {:g} buys no hesitation, the second pass reads every token in the "
                        "end; allowed with this model on this machine: {:.2f}..100",
                        budget, std::ceil(100 * least) / 100));
    }
    c.bought = *bought;
}

void choose_threshold(const Flags & flags, const Options & base, Calibration & c) {
    c.wanted_share = std::min(flags.share.value_or(flags.cost ? 1.0 : default_share), c.bought.share);
    c.choice = decoding::threshold_for_share(c.gate_values, c.wanted_share);
    c.recommended = base;
    c.recommended.threshold = c.choice.threshold;
}

std::string output_json(LoadedModel & loaded, const Source & source, const Calibration & c, double seconds) {
    json output = calibration_json(c);
    output["seconds"] = seconds;
    output["window"] = c.is_generated ? json() : json(source.text.window);
    output["prompt"] = c.is_generated ? prompt_json(source.prompt, source.text.tokens.size()) : json();
    output["sampler_seed"] = c.is_generated ? json(loaded.sampler_seed()) : json();
    output["harp_options"] = options_json(c.recommended);
    output["model"] = model_json(loaded.model(), loaded.params().model.path);
    output["build"] = build_json();
    return dump(output, 2) + "\n";
}

/// A threshold for the target.
int calibrate_threshold(const common_params & params, const Flags & flags, const Options & options,
                        const std::string & given, const std::string & negative_prompt) {
    const ScoringProgress all;
    LoadedModel loaded(params, options_of_pass({&options, 1}));
    Calibration calibration;
    calibration.gate = options.gate;
    const Source source = flags.n_generate > 0 ? take_answer(loaded, given, flags, calibration)
                                               : take_text(loaded, given, flags.scoring, calibration);
    if (flags.cost) apply_budget(calibration, loaded, source.text.tokens, *flags.cost);
    choose_threshold(flags, options, calibration);
    calibration.command = command_with(calibration.recommended, params.model.path, negative_prompt);
    write_out(flags.as_json ? output_json(loaded, source, calibration, all.seconds()) : calibration_text(calibration));
    return exit_ok;
}

/// The second look that helps.
int calibrate_look(common_params params, const Flags & flags, const std::vector<Options> & sets,
                   const std::string & given, const std::string & negative_prompt) {
    if (!flags.search.examples.empty()) {  // examples share batches
        constexpr int n_sequences = 4;
        constexpr int most = std::numeric_limits<int>::max() / n_sequences;
        if (params.n_ctx > most)
            throw Error(ErrorCode::invalid_option,
                        fmt::format("option '-c': {} is out of range [0..{}]", params.n_ctx, most));
        params.n_parallel = n_sequences;
        params.kv_unified = true;
        params.n_ctx *= n_sequences;
    }
    const ScoringProgress all;
    LoadedModel loaded(params, options_of_pass(sets));
    const Search search = run_search(loaded, given, flags.scoring, flags.search, sets, negative_prompt);
    json about = search_json(search);
    about["seconds"] = all.seconds();
    about["examples_file"] = flags.search.examples;
    about["model"] = model_json(loaded.model(), params.model.path);
    about["build"] = build_json();
    std::optional<Error> not_written;  // thrown below, where what was found is printed
    if (search.helps && !flags.search.preset.empty()) {
        json found_by = about;
        found_by.erase("tries");
        try {
            write_preset(search, flags.search.preset, found_by);
        } catch (const Error & error) {
            not_written = error;
        }
    }
    about["recommended"] = search.helps ? options_json(search.recommended) : options_json(std::nullopt);
    write_out(flags.as_json ? dump(about, 2) + "\n" : search_text(search));
    if (not_written) throw Error(*not_written);
    if (!search.helps && !flags.search.preset.empty())
        print_err("harp calibrate: no preset is written: nothing was seen to help\n");
    return exit_ok;
}

}  // namespace

int calibrate_command(int argc, char ** argv) {
    CommandLine line(
        "calibrate",
        "Which second look helps this model on these examples, and by how much: views, thresholds, betas and "
        "plausibilities\n"
        "are tried on the first half of them (--examples FILE, or a text by -f FILE, -p TEXT or standard input), the "
        "best is\n"
        "checked on the second half. With a target: the threshold at which a share of the steps of a text, or of the\n"
        "model's answer to it, hesitates.",
        "harp calibrate -m model.gguf --examples questions.jsonl --write-preset preset.json\n  "
        "harp calibrate -m model.gguf -f book.txt --max-tokens 2000 --target-share 0.2");
    Flags flags;
    flags.add_to(line.app);
    line.harp.add_to(line.app);
    common_params params;
    if (const auto code = line.parse(argc, argv, params)) return *code;
    const auto options = line.harp.options();
    refuse_speculation(params);
    if (!options)
        throw Error(ErrorCode::invalid_option,
                    line.harp.switched_off_by() + " leaves nothing to calibrate; leave it out");
    line.harp.refuse("threshold", "calibrate looks for it");
    line.harp.refuse_n_ctx_twin("calibrate");
    if (flags.n_generate == 0) line.refuse_flags_not_in("score", "no effect without --generate");
    if (!flags.search.examples.empty() && line.has_llama_flag(prompt_flags))
        throw Error(ErrorCode::invalid_option, "option '--examples': -p and -f have no effect with it; leave them out");
    if (flags.has_target()) {
        line.harp.refuse_negative_prompt("calibrate with a target");
        if (flags.n_generate == 0) limit_context(params);
        // the preset's threshold is replaced, its other options and its negative prompt are kept
        return calibrate_threshold(params, flags, *options, read_prompt(line, params), line.harp.negative_prompt());
    }
    constexpr const char * why = "calibrate tries several (--views, --gates, --thresholds, --betas, --plausibilities)";
    constexpr std::array tried = {"threshold", "beta", "plausibility", "gate", "view", "view_tokens", "strength"};
    for (const char * name : tried) line.harp.refuse(name, why);
    line.harp.refuse_in_preset(tried, why);
    const std::vector<Options> sets = flags.search.sets(*options);
    line.harp.check_negative_prompt(sets);
    if (!flags.search.preset.empty()) check_writable("option '--write-preset':", flags.search.preset);
    const std::string given = flags.search.examples.empty() ? read_prompt(line, params) : "";
    limit_context(params);
    return calibrate_look(params, flags, sets, given, line.harp.negative_prompt(sets));
}

}  // namespace harp::cli
