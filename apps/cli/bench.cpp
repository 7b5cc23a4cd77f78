// harp bench: vanilla, HARP, beam search, speculation and others on the same prompts and model, in interleaved rounds;
// one table.
#include <fmt/format.h>
#include <sys/wait.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <memory>

#include "beams.h"
#include "bench_methods.h"
#include "bench_report.h"
#include "commands.h"
#include "decoding/machine.h"
#include "flags/files.h"
#include "flags/terminal.h"
#include "harp/kernels.h"
#include "llama-ext.h"
#include "model/interrupt.h"
#include "model/loaded_model.h"
#include "model/report.h"
#include "stopwatch.h"

namespace harp::cli {

namespace {

using decoding::spread_of;
using nlohmann::json;

const std::vector<std::string> built_in_prompts = {
    "A shop sells pencils at 3 for 40 cents. Mira buys 12 pencils and pays with a 5 dollar note. How much change does "
    "she get?",
    "Explain to a ten-year-old why the moon seems to change its shape during a month.",
    "Write a short letter to a landlord who has not repaired the heating for two weeks.",
    "List the steps for repotting a plant, and say for each step what can go wrong.",
};

struct BenchFlags {
    std::vector<std::string> methods;
    std::string prompts_file;
    size_t n_prompts = 4;
    int n_rounds = 3;
    bool as_json = false;
    bool as_markdown = false;
    std::string plot;
    std::string baseline;
    std::string format = "auto";
    BeamFlags beams;

    void add_to(CLI::App & app);
};

std::string kinds_help() {
    std::string text = "methods to measure, separated by commas:\n";
    for (const BenchKind & kind : bench_kinds()) text += fmt::format("{:<13} {}\n", kind.name, kind.meaning);
    return text +
           "(default: vanilla, harp, harp-lazy, harp-fused, beam, harp-beam, lookup, harp-lookup; with -md also draft, "
           "harp-draft)";
}

void BenchFlags::add_to(CLI::App & app) {
    std::vector<std::string> names;
    for (const BenchKind & kind : bench_kinds()) names.push_back(kind.name);
    app.add_option("--methods", methods, kinds_help())->delimiter(',')->check(CLI::IsMember(names).description(""));
    app.add_option("--prompts", prompts_file,
                   "file of prompts: JSON lines with a field prompt, question, text or article, or one prompt per line "
                   "(default: four built-in prompts)");
    app.add_option("--n-prompts", n_prompts, "use the first N prompts [1..100000]")
        ->check(CLI::Range(1, 100000).description(""))
        ->capture_default_str();
    app.add_option("--rounds", n_rounds, "measured rounds, after one to warm up [1..1000]")
        ->check(CLI::Range(1, 1000).description(""))
        ->capture_default_str();
    add_format_flag(app, format);
    app.add_flag("--json", as_json, "print one JSON object");
    app.add_flag("--markdown", as_markdown, "print a Markdown table, with machine, model and options")
        ->excludes("--json");
    app.add_option("--plot", plot, "also write the table's main figure into this SVG file");
    app.add_option("--baseline", baseline, "a shell command that is timed once per round, for comparison");
    beams.options.beams = 3;
    beams.add_to(app, /*prints_several=*/false);
}

std::string prompt_of(const std::string & line, const std::string & place) {
    if (line.empty() || line.front() != '{') return line;
    const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!object.is_discarded()) {
        for (const char * field : {"prompt", "question", "text", "article"}) {
            if (object.contains(field) && object[field].is_string()) return object[field].get<std::string>();
        }
    }
    throw Error(ErrorCode::invalid_input,
                place + ": not a JSON object with a text field prompt, question, text or article");
}

std::vector<std::string> read_prompts(const BenchFlags & flags) {
    std::vector<std::string> prompts = built_in_prompts;
    if (!flags.prompts_file.empty()) {
        prompts.clear();
        std::ifstream file = open_file("prompts", flags.prompts_file);
        size_t n_line = 0;
        for (std::string line; prompts.size() < flags.n_prompts && std::getline(file, line);) {
            const std::string place = fmt::format("prompts '{}', line {}", flags.prompts_file, ++n_line);
            if (n_line == 1) remove_byte_order_mark(line);
            if (!line.empty() && line.back() == '\r') line.pop_back();
            if (line.find_first_not_of(" \t") == std::string::npos) continue;
            if (find_invalid_utf8(line) != std::string::npos)
                throw Error(ErrorCode::invalid_input, place + ": not valid UTF-8");
            prompts.push_back(prompt_of(line, place));
        }
        if (prompts.empty())
            throw Error(ErrorCode::invalid_input, fmt::format("prompts '{}': empty", flags.prompts_file));
    }
    if (prompts.size() > flags.n_prompts) prompts.resize(flags.n_prompts);
    return prompts;
}

std::vector<BenchKind> chosen_kinds(const BenchFlags & flags, const common_params & params) {
    std::vector<std::string> names = flags.methods;
    const bool has_draft = params.speculative.has_dft();
    if (names.empty()) {
        names = {"vanilla", "harp", "harp-lazy", "harp-fused", "beam", "harp-beam", "lookup", "harp-lookup"};
        if (has_draft) names.insert(names.end(), {"draft", "harp-draft"});
    }
    std::vector<BenchKind> kinds;
    for (const BenchKind & kind : bench_kinds()) {
        // besides the named methods: vanilla, which all are relative to, and methods that tokens are compared with
        const bool is_named = std::find(names.begin(), names.end(), kind.name) != names.end();
        const bool is_reference = std::any_of(bench_kinds().begin(), bench_kinds().end(), [&](const BenchKind & other) {
            return other.reference == kind.name && std::find(names.begin(), names.end(), other.name) != names.end();
        });
        if (!is_named && !is_reference && kind.name != "vanilla") continue;
        if (kind.draft == BenchKind::Draft::model && !has_draft)
            throw Error(ErrorCode::invalid_option,
                        fmt::format("option '--methods': {} needs a draft model (-md)", kind.name));
        kinds.push_back(kind);
    }
    return kinds;
}

/// Sums over the prompts of one round of one method.
struct RoundSums {
    double decode_seconds = 0;
    double prompt_seconds = 0;
    double first_token_seconds = 0;
    size_t n_steps = 0;
    uint64_t n_judged = 0;
    uint64_t n_hesitations = 0;
    uint64_t n_twin_rows = 0;

    void add(const BenchRun & run) {
        decode_seconds += run.decode_seconds;
        prompt_seconds += run.prompt_seconds;
        first_token_seconds += run.first_token_seconds;
        n_steps += run.n_steps;
        n_judged += run.n_judged;
        n_hesitations += run.n_hesitations;
        n_twin_rows += run.n_twin_rows;
    }
    [[nodiscard]] double step() const { return decode_seconds / static_cast<double>(std::max<size_t>(1, n_steps)); }
    [[nodiscard]] double total() const { return prompt_seconds + decode_seconds; }
};

class Bench {
  public:
    /// @param stock model for methods that need one of their own; may be null if no method does
    Bench(LoadedModel & loaded, LoadedModel * stock, const BenchFlags & flags, const std::vector<BenchKind> & kinds,
          const BenchMethod::Settings & settings, std::vector<std::vector<llama_token>> prompts)
        : flags_(flags), settings_(settings), prompts_(std::move(prompts)) {
        for (const BenchKind & kind : kinds) {
            progress_.show("preparing " + kind.name);
            methods_.push_back(std::make_unique<BenchMethod>(kind.stock ? *stock : loaded, kind, settings));
        }
        rounds_.resize(methods_.size());
        tokens_.resize(methods_.size());
    }

    /// @return whether all rounds were run; false after Ctrl-C, if at least one is complete
    bool run() {
        try {
            for (int round = -1; round < flags_.n_rounds; ++round) run_round(round);
        } catch (const Error & error) {
            progress_.clear();
            if (error.code() != ErrorCode::aborted || n_rounds_ == 0) throw;
            for (auto & rounds : rounds_) rounds.resize(n_rounds_);
            baseline_seconds_.resize(std::min(baseline_seconds_.size(), n_rounds_));
            return false;
        }
        progress_.clear();
        return true;
    }

    [[nodiscard]] BenchReport report() {
        BenchReport report;
        report.n_prompts = prompts_.size();
        for (const auto & prompt : prompts_) report.n_prompt_tokens += prompt.size();
        report.n_predict = settings_.n_predict;
        report.n_rounds = static_cast<int>(n_rounds_);
        for (size_t m = 0; m < methods_.size(); ++m) report.rows.push_back(row(m));
        if (!flags_.baseline.empty()) {
            std::vector<double> ratios;
            for (size_t r = 0; r < n_rounds_; ++r) ratios.push_back(baseline_seconds_[r] / rounds_[0][r].total());
            report.baseline = {flags_.baseline, spread_of(baseline_seconds_), spread_of(ratios)};
        }
        return report;
    }

  private:
    /// Round -1 warms up, and gives the tokens to compare. Each round starts with another method.
    void run_round(int round) {
        const size_t n = methods_.size();
        for (size_t i = 0; i < n; ++i) {
            const size_t m = (i + static_cast<size_t>(round + 1)) % n;
            RoundSums sums;
            for (size_t p = 0; p < prompts_.size(); ++p) {
                progress_.show(
                    fmt::format("{}: {}, prompt {} of {}",
                                round < 0 ? "warming up" : fmt::format("round {} of {}", round + 1, flags_.n_rounds),
                                methods_[m]->kind().name, p + 1, prompts_.size()));
                const BenchRun run = methods_[m]->run(prompts_[p]);
                sums.add(run);
                if (round < 0) tokens_[m].push_back(run.tokens);
            }
            if (round >= 0) rounds_[m].push_back(sums);
        }
        if (round < 0) return;
        if (!flags_.baseline.empty()) run_baseline();
        ++n_rounds_;
    }

    void run_baseline() {
        progress_.show("baseline: " + flags_.baseline);
        const Stopwatch watch;
        const int status = std::system(("( " + flags_.baseline + "\n) >/dev/null 2>&1 </dev/null").c_str());
        baseline_seconds_.push_back(watch.seconds());
        const bool was_interrupted = (WIFSIGNALED(status) && WTERMSIG(status) == SIGINT) ||
                                     (WIFEXITED(status) && WEXITSTATUS(status) == 128 + SIGINT);
        if (was_interrupted) stop_interrupted();
        if (status != 0) {
            throw Error(ErrorCode::invalid_option,
                        fmt::format("option '--baseline': the command failed (exit code {}): {}",
                                    WIFEXITED(status) ? WEXITSTATUS(status) : -1, flags_.baseline));
        }
    }

    [[nodiscard]] BenchRow row(size_t m) {
        BenchMethod & method = *methods_[m];
        std::vector<double> rates;
        std::vector<double> step_ratios;
        std::vector<double> total_ratios;
        std::vector<double> first_tokens;
        for (size_t r = 0; r < n_rounds_; ++r) {
            const RoundSums & sums = rounds_[m][r];
            const RoundSums & vanilla = rounds_[0][r];
            rates.push_back(1 / sums.step());
            step_ratios.push_back(sums.step() / vanilla.step());
            total_ratios.push_back(sums.total() / vanilla.total());
            first_tokens.push_back(sums.first_token_seconds / static_cast<double>(prompts_.size()));
        }
        BenchRow row;
        row.name = method.kind().name;
        row.meaning = method.kind().meaning;
        row.steps_per_second = spread_of(rates);
        row.step_ratio = spread_of(step_ratios);
        row.total_ratio = spread_of(total_ratios);
        row.first_token_seconds = spread_of(first_tokens);
        for (const auto & [buffer_type, memory] : llama_get_memory_breakdown(method.pass().context()))
            row.cache_bytes += memory.context;
        const RoundSums & sums = rounds_[m].front();  // the same in each round: greedy, or sampled with the same seed
        if (method.kind().hesitates && sums.n_judged > 0) {
            row.hesitation_share = static_cast<double>(sums.n_hesitations) / static_cast<double>(sums.n_judged);
            row.twin_rows_per_step = static_cast<double>(sums.n_twin_rows) / static_cast<double>(sums.n_steps);
        }
        if (const decoding::Drafter * drafter = method.drafter();
            drafter != nullptr && drafter->statistics().drafted > 0) {
            row.acceptance = static_cast<double>(drafter->statistics().accepted) /
                             static_cast<double>(drafter->statistics().drafted);
        }
        compare_tokens(m, row);
        return row;
    }

    void compare_tokens(size_t m, BenchRow & row) const {
        row.reference = methods_[m]->kind().reference;
        for (size_t other = 0; other < methods_.size(); ++other) {
            if (row.reference.empty() || methods_[other]->kind().name != row.reference) continue;
            row.n_same = 0;
            for (size_t p = 0; p < prompts_.size(); ++p) row.n_same += tokens_[m][p] == tokens_[other][p] ? 1 : 0;
        }
    }

    const BenchFlags & flags_;
    BenchMethod::Settings settings_;
    std::vector<std::vector<llama_token>> prompts_;
    ProgressLine progress_;
    std::vector<std::unique_ptr<BenchMethod>> methods_;          // [0] is vanilla
    std::vector<std::vector<RoundSums>> rounds_;                 // [method][round]
    std::vector<std::vector<std::vector<llama_token>>> tokens_;  // [method][prompt], from the warm-up round
    std::vector<double> baseline_seconds_;
    size_t n_rounds_ = 0;  // complete rounds
};

void add_facts(BenchReport & report, LoadedModel & loaded, const Options & options) {
    const common_params & params = loaded.params();
    std::array<char, 128> description{};
    llama_model_desc(&loaded.model(), description.data(), description.size());
    report.facts = {fmt::format("{}, {} threads; {} ({})", decoding::cpu_model(), params.cpuparams.n_threads,
                                std::filesystem::path(params.model.path).filename().string(), description.data()),
                    llama_print_system_info(), fmt::format("harp: {}", options_text(options))};
    report.context = {{"cpu", decoding::cpu_model()},
                      {"threads", params.cpuparams.n_threads},
                      {"harp", options_json(options)},
                      {"model", model_json(loaded.model(), params.model.path)},
                      {"build", build_json()}};
}

void write_plot(const std::string & path, const BenchReport & report) {
    std::ofstream file(path);
    file << bench_svg(report);
    if (!file.flush()) throw Error(ErrorCode::io, fmt::format("cannot write the plot '{}'", path));
}

}  // namespace

int bench_command(int argc, char ** argv) {
    CommandLine line(
        "bench",
        "Measures vanilla decoding, HARP and the methods it is compared with on the same prompts and model, in\n"
        "interleaved rounds. Each answer has exactly -n tokens (64). Run it on an idle machine.",
        "harp bench -m model.gguf --rounds 5 --markdown --plot bench.svg");
    BenchFlags flags;
    flags.add_to(line.app);
    line.harp.add_to(line.app);
    common_params params;
    if (const auto code = line.parse(argc, argv, params)) return *code;
    const auto options = line.harp.options();
    line.harp.refuse_negative_prompt("bench");
    line.harp.refuse_n_ctx_twin("bench");
    line.harp.refuse_negative_prompt_of_preset("bench");
    if (!options)
        throw Error(ErrorCode::invalid_option,
                    line.harp.switched_off_by() + ": bench compares with vanilla in any case; leave it out");
    // llama.cpp's default is -1, without end
    const bool is_given = line.has_llama_flag({"-n", "--predict", "--n-predict"});
    if (params.n_predict < 2 && (is_given || params.n_predict != -1))
        throw Error(ErrorCode::invalid_option, fmt::format("option '-n': {} is out of range [2..]", params.n_predict));
    decoding::validate(flags.beams.options);
    check_sequences(flags.beams.options.beams, options);
    if (!flags.plot.empty()) check_writable("option '--plot':", flags.plot);
    const std::vector<std::string> texts = read_prompts(flags);
    const std::vector<BenchKind> kinds = chosen_kinds(flags, params);
    limit_context(params);

    LoadedModel loaded(params, std::nullopt);
    loaded.check_generates();
    std::vector<std::vector<llama_token>> prompts;
    for (const std::string & text : texts) {
        const FormattedPrompt prompt = format_prompt(loaded, text, flags.format);
        prompts.push_back(loaded.tokenize(prompt.text, prompt.is_chat));
    }
    const BenchMethod::Settings settings = {*options, flags.beams.options,
                                            params.n_predict < 0 ? 64 : static_cast<size_t>(params.n_predict)};
    std::unique_ptr<LoadedModel> stock;
    if (std::any_of(kinds.begin(), kinds.end(), [](const BenchKind & kind) { return kind.stock; })) {
        harp_set_kernels(false);
        stock = std::make_unique<LoadedModel>(params, std::nullopt);
    }
    Bench bench(loaded, stock.get(), flags, kinds, settings, std::move(prompts));
    const bool is_complete = bench.run();
    BenchReport report = bench.report();
    report.is_complete = is_complete;
    add_facts(report, loaded, *options);
    write_out(flags.as_json       ? dump(bench_json(report), 2) + "\n"
              : flags.as_markdown ? bench_markdown(report)
                                  : bench_text(report));
    if (!flags.plot.empty()) write_plot(flags.plot, report);
    return is_complete ? exit_ok : exit_interrupted;
}

}  // namespace harp::cli
