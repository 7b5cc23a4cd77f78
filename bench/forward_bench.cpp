// What HARP costs: plain llama.cpp, HARP off, fused, lazy, auto and redraw 1 on one model, in one process, alternating.
//
// All methods decode the same text, so all do the same steps. First equality is checked: HARP off must give plain
// llama.cpp's logits bit for bit, and fused is compared with lazy step by step. Decode calls are timed until logits are
// ready, without sampling. The twin's prefill is timed separately, since it occurs once per answer, not per token.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "bench_text.h"
#include "decoding/machine.h"
#include "decoding/spread.h"
#include "forward/batch_rows.h"
#include "harp/forward_pass.h"
#include "llama-cpp.h"

namespace harp::bench {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;

struct Settings {
    std::string model;
    std::vector<int> contexts = {128, 512, 2048};
    int n_tokens = 64;
    int n_redraw_tokens = 8;  // for redraw 1, which decodes the whole context anew at each hesitation
    int n_rounds = 5;
    int n_threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
    bool flash_attention = true;
    double threshold = 1.0;
    std::string json_file;
};

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// ---------------------------------------------------------------------------------------------------------------------
// Statistics of rounds

using decoding::Spread;
using decoding::spread_of;

json to_json(const Spread & s) {
    return {{"median", s.median}, {"min", s.low}, {"max", s.high}};
}

// ---------------------------------------------------------------------------------------------------------------------
// Text

std::vector<llama_token> tokenize(const llama_vocab * vocab, const std::string & text, bool add_special) {
    std::vector<llama_token> tokens(text.size() + 8);
    const int32_t n = llama_tokenize(vocab, text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                                     static_cast<int32_t>(tokens.size()), add_special, false);
    tokens.resize(static_cast<size_t>(std::max(0, n)));
    return tokens;
}

/// `n` tokens of a text, which is repeated as needed.
std::vector<llama_token> tokens_of(const llama_vocab * vocab, const char * text, int n, bool add_special) {
    std::vector<llama_token> tokens = tokenize(vocab, text, add_special);
    const std::vector<llama_token> again = tokenize(vocab, text, false);
    if (again.empty()) throw Error(ErrorCode::invalid_input, "the model's tokenizer gives no tokens for English text");
    while (tokens.size() < static_cast<size_t>(n)) tokens.insert(tokens.end(), again.begin(), again.end());
    tokens.resize(static_cast<size_t>(n));
    return tokens;
}

// ---------------------------------------------------------------------------------------------------------------------
// Methods

/// One way to decode the text: with its own pass, or with a plain context.
struct Method {
    std::string name;
    std::unique_ptr<ForwardPass> pass;  // null: plain llama.cpp
    llama_context_ptr plain;
    int n_tokens = 0;                               // timed steps per round
    bool keeps_twin = false;                        // whether its twin holds the context before the timed steps
    std::vector<double> seconds = {};               // [round], per token
    std::vector<double> twin_prefill_seconds = {};  // [round], of the first hesitation
    Statistics statistics = {};                     // of the last round's timed steps
    std::vector<std::vector<float>> logits = {};    // [step][n_vocab], from the warm-up round
    std::vector<StepRecord> records = {};           // [step], the same

    [[nodiscard]] llama_context * context() { return pass ? pass->context() : plain.get(); }
    void clear() { pass ? pass->memory_clear(false) : llama_memory_clear(llama_get_memory(plain.get()), false); }
    void decode(std::span<const llama_token> tokens, int first, bool is_output = true) {
        rows.clear();
        const llama_seq_id sequence = 0;
        for (size_t i = 0; i < tokens.size(); ++i) {
            rows.add(tokens[i], first + static_cast<int>(i), {&sequence, 1}, is_output && i + 1 == tokens.size());
        }
        if (pass) {
            pass->decode(rows.view());
        } else if (llama_decode(plain.get(), rows.view()) != 0) {
            throw Error(ErrorCode::decode_failed, "llama_decode failed");
        }
    }
    [[nodiscard]] const float * last_row() { return pass ? pass->logits(-1) : llama_get_logits_ith(plain.get(), -1); }

    forward::BatchRows rows = {};
};

struct Equality {
    bool off_is_plain = false;      // bit for bit, all steps
    double largest_difference = 0;  // of log-probabilities, fused and lazy, at steps that both judged alike
    int n_gate_differs = 0;         // steps where rounding moved the entropy over the threshold
};

/// Largest difference of the log-probabilities of two rows of logits, ignoring negligible tokens.
double difference(const std::vector<float> & a, const std::vector<float> & b) {
    const auto log_sum = [](const std::vector<float> & row) {
        const double top = *std::max_element(row.begin(), row.end());
        double sum = 0;
        for (const float x : row) sum += std::exp(static_cast<double>(x) - top);
        return top + std::log(sum);
    };
    const double sum_a = log_sum(a);
    const double sum_b = log_sum(b);
    double largest = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        const double pa = static_cast<double>(a[i]) - sum_a;
        const double pb = static_cast<double>(b[i]) - sum_b;
        if (std::max(pa, pb) > std::log(1e-3)) largest = std::max(largest, std::fabs(pa - pb));
    }
    return largest;
}

class ContextBench {
  public:
    ContextBench(llama_model & model, const Settings & settings, int n_context)
        : model_(model), settings_(settings), n_context_(n_context) {
        const llama_vocab * vocab = llama_model_get_vocab(&model);
        n_vocab_ = llama_vocab_n_tokens(vocab);
        tokens_ = tokens_of(vocab, context_text, n_context, true);
        const auto answer = tokens_of(vocab, answer_text, settings.n_tokens, false);
        tokens_.insert(tokens_.end(), answer.begin(), answer.end());
        make_methods();
    }

    json run() {
        for (int round = -1; round < settings_.n_rounds; ++round) {  // the first is a warm-up, and gives the logits
            const size_t n = methods_.size();  // rounds begin with different methods, because what ran before matters
            for (size_t i = 0; i < n; ++i) run_round(methods_[(i + static_cast<size_t>(round + 1)) % n], round < 0);
            if (round < 0) check_equality();
        }
        return report();
    }

  private:
    [[nodiscard]] llama_context_params params(int n_sequences) const {
        llama_context_params p = llama_context_default_params();
        p.n_ctx = static_cast<uint32_t>((n_context_ + settings_.n_tokens + 8) * n_sequences);
        p.n_seq_max = static_cast<uint32_t>(n_sequences);
        p.n_threads = p.n_threads_batch = settings_.n_threads;
        p.flash_attn_type = settings_.flash_attention ? LLAMA_FLASH_ATTN_TYPE_AUTO : LLAMA_FLASH_ATTN_TYPE_DISABLED;
        return p;
    }

    void make_methods() {
        const int n = settings_.n_tokens;
        methods_.push_back(
            {"plain llama.cpp", nullptr, llama_context_ptr(llama_init_from_model(&model_, params(1))), n});
        const auto add = [&](const std::string & name, const std::optional<Options> & options, int n_tokens,
                             bool keeps_twin) {
            auto pass = std::make_unique<ForwardPass>(model_, params(1), options);
            methods_.push_back({name, std::move(pass), nullptr, n_tokens, keeps_twin});
        };
        Options options;
        options.threshold = settings_.threshold;
        add("HARP off", std::nullopt, n, false);
        options.schedule = Schedule::fused;
        add("fused", options, n, true);
        options.schedule = Schedule::lazy;
        add("lazy", options, n, true);
        options.schedule = Schedule::automatic;
        add("auto", options, n, true);
        if (settings_.n_redraw_tokens == 0) return;
        options.redraw = 1;
        add("redraw 1", options, std::min(n, settings_.n_redraw_tokens), false);
    }

    /// Decodes the context, lets the twin catch up, then runs the timed steps.
    void run_round(Method & method, bool is_warm_up) {
        const std::span<const llama_token> tokens(tokens_);
        method.clear();
        method.decode(tokens.first(static_cast<size_t>(n_context_) - 1), 0, /*is_output=*/false);  // no hesitation yet
        const auto set_threshold = [&](double threshold) {
            Options options = method.pass->sequence_options(0);
            options.threshold = threshold;
            method.pass->set_sequence_options(0, options);
        };
        if (method.keeps_twin) set_threshold(0);  // the context's last step hesitates
        const auto prefill_start = Clock::now();
        method.decode(tokens.subspan(static_cast<size_t>(n_context_) - 1, 1), n_context_ - 1);
        if (method.keeps_twin) {
            if (!is_warm_up) method.twin_prefill_seconds.push_back(seconds_since(prefill_start));
            set_threshold(settings_.threshold);
        }

        if (method.pass) method.pass->reset_statistics();
        double seconds = 0;
        for (int i = 0; i < method.n_tokens; ++i) {
            const int at = n_context_ + i;
            const auto start = Clock::now();
            method.decode(tokens.subspan(static_cast<size_t>(at), 1), at);
            const float * row = method.last_row();
            seconds += seconds_since(start);
            if (!is_warm_up) continue;
            method.logits.emplace_back(row, row + n_vocab_);
            if (method.pass && method.pass->enabled()) method.records.push_back(method.pass->step(-1));
        }
        if (is_warm_up) return;
        method.seconds.push_back(seconds / method.n_tokens);
        if (method.pass) method.statistics = method.pass->statistics();
    }

    void check_equality() {
        const Method & fused = methods_[2];
        const Method & lazy = methods_[3];
        equality_.off_is_plain = methods_[0].logits == methods_[1].logits;
        for (size_t i = 0; i < fused.logits.size(); ++i) {
            if (fused.records[i].hesitated != lazy.records[i].hesitated) {
                ++equality_.n_gate_differs;
                continue;
            }
            equality_.largest_difference =
                std::max(equality_.largest_difference, difference(fused.logits[i], lazy.logits[i]));
        }
        for (Method & method : methods_) method.logits.clear();
        if (!equality_.off_is_plain) throw Error(ErrorCode::decode_failed, "HARP off differs from plain llama.cpp");
    }

    /// Bytes of the KV cache: its cells times what a token takes in the saved sequence.
    [[nodiscard]] double cache_bytes(Method & method) const {
        Method & plain = const_cast<Method &>(methods_[0]);
        const size_t after = llama_state_seq_get_size(plain.context(), 0);
        llama_memory_seq_rm(llama_get_memory(plain.context()), 0, n_context_, -1);
        const size_t before = llama_state_seq_get_size(plain.context(), 0);
        const double per_token = static_cast<double>(after - before) / settings_.n_tokens;
        plain.decode(std::span<const llama_token>(tokens_).subspan(static_cast<size_t>(n_context_)), n_context_);
        return per_token * llama_n_ctx(method.context());
    }

    json report() {
        json methods = json::array();
        for (Method & m : methods_) {
            std::vector<double> rates;
            std::vector<double> ratios;
            for (size_t i = 0; i < m.seconds.size(); ++i) {
                rates.push_back(1 / m.seconds[i]);
                ratios.push_back(m.seconds[i] / methods_[0].seconds[i]);
            }
            const Statistics & s = m.statistics;
            json entry = {{"name", m.name},
                          {"timed_tokens", m.n_tokens},
                          {"tokens_per_second", to_json(spread_of(rates))},
                          {"time_relative_to_plain", to_json(spread_of(ratios))},
                          {"cache_bytes", cache_bytes(m)}};
            if (s.steps > 0) {
                const auto steps = static_cast<double>(s.steps);
                entry["hesitated"] = static_cast<double>(s.hesitations) / steps;
                entry["second_pass_rows_per_token"] = static_cast<double>(s.second_pass_rows) / steps;
                entry["fused_share"] = static_cast<double>(s.fused_steps) / steps;
            }
            if (s.total_seconds > 0) entry["outside_llama_decode"] = 1 - s.llama_seconds / s.total_seconds;
            if (m.keeps_twin) entry["twin_prefill_seconds"] = to_json(spread_of(m.twin_prefill_seconds));
            methods.push_back(std::move(entry));
        }
        return {{"context", n_context_},
                {"rounds", settings_.n_rounds},
                {"off_equals_plain_bit_for_bit", equality_.off_is_plain},
                {"fused_against_lazy",
                 {{"largest_difference_log_probability", equality_.largest_difference},
                  {"steps_judged_differently", equality_.n_gate_differs}}},
                {"methods", std::move(methods)},
                {"cost_of_rows", cost_of_rows()}};
    }

    /// c(n): the time to decode one row of each of n sequences, relative to one. Each sequence holds the context.
    [[nodiscard]] json cost_of_rows() const {
        constexpr std::array<int, 6> sizes{1, 2, 3, 4, 8, 16};
        const llama_context_ptr context(llama_init_from_model(&model_, params(sizes.back())));
        if (!context) return nullptr;  // no memory for 16 sequences
        llama_memory_t memory = llama_get_memory(context.get());
        forward::BatchRows rows;
        const auto decode = [&](int n_sequences, std::span<const llama_token> tokens, int first) {
            rows.clear();
            for (llama_seq_id s = 0; s < n_sequences; ++s) {
                for (size_t i = 0; i < tokens.size(); ++i) {
                    rows.add(tokens[i], first + static_cast<int>(i), {&s, 1}, i + 1 == tokens.size());
                }
            }
            const auto start = Clock::now();
            if (llama_decode(context.get(), rows.view()) != 0) throw Error(ErrorCode::decode_failed, "c(n) failed");
            llama_synchronize(context.get());
            return seconds_since(start);
        };
        const std::span<const llama_token> tokens(tokens_);
        (void)decode(1, tokens.first(static_cast<size_t>(n_context_)), 0);
        for (llama_seq_id s = 1; s < sizes.back(); ++s) llama_memory_seq_cp(memory, 0, s, -1, -1);
        std::array<std::vector<double>, sizes.size()> seconds;
        const int n_repeats = 4 * settings_.n_rounds;
        for (int repeat = -1; repeat < n_repeats; ++repeat) {
            for (size_t k = 0; k < sizes.size(); ++k) {
                const double time = decode(sizes[k], tokens.subspan(static_cast<size_t>(n_context_), 1), n_context_);
                for (llama_seq_id s = 0; s < sizes[k]; ++s) llama_memory_seq_rm(memory, s, n_context_, -1);
                if (repeat >= 0) seconds[k].push_back(time);
            }
        }
        json costs = json::array();
        for (size_t k = 0; k < sizes.size(); ++k) {
            std::vector<double> ratios;
            for (size_t i = 0; i < seconds[k].size(); ++i) ratios.push_back(seconds[k][i] / seconds[0][i]);
            costs.push_back({{"rows", sizes[k]},
                             {"milliseconds", 1000 * spread_of(seconds[k]).median},
                             {"relative", to_json(spread_of(ratios))}});
        }
        return costs;
    }

    llama_model & model_;
    const Settings & settings_;
    int n_context_;
    int n_vocab_ = 0;
    std::vector<llama_token> tokens_;  // [context + timed tokens]
    std::vector<Method> methods_;
    Equality equality_;
};

// ---------------------------------------------------------------------------------------------------------------------
// Output

json header(const llama_model & model, const Settings & settings) {
    std::array<char, 128> description{};
    llama_model_desc(&model, description.data(), description.size());
    return {{"cpu", decoding::cpu_model()},
            {"instructions", llama_print_system_info()},
            {"threads", settings.n_threads},
            {"model", description.data()},
            {"flash_attention", settings.flash_attention},
            {"model_bytes", llama_model_size(&model)},
            {"threshold_bits", settings.threshold},
            {"build", HARP_BENCH_BUILD}};
}

std::string percent(const json & entry, const char * key, int digits) {
    return entry.contains(key) ? fmt::format("{:.{}f} %", 100 * entry[key].get<double>(), digits) : "-";
}

void print(const json & context) {
    const json & agreement = context["fused_against_lazy"];
    fmt::print("\n### context {}\n\n", context["context"].get<int>());
    fmt::print(
        "{} rounds. HARP off equals plain llama.cpp bit for bit. Fused against lazy: log-probabilities differ by at "
        "most {:.2g}; {} steps judged differently.\n\n",
        context["rounds"].get<int>(), agreement["largest_difference_log_probability"].get<double>(),
        agreement["steps_judged_differently"].get<int>());
    fmt::print(
        "| method | tokens/s, median (min..max) | time relative to plain, median (min..max) | hesitated | twin rows "
        "a token | fused steps | outside llama_decode | twin's prefill, ms | KV cache, MB |\n");
    fmt::print("|---|---|---|---|---|---|---|---|---|\n");
    for (const json & m : context["methods"]) {
        const json & rate = m["tokens_per_second"];
        const json & ratio = m["time_relative_to_plain"];
        fmt::print("| {} | {:.1f} ({:.1f}..{:.1f}) | {:.3f} ({:.3f}..{:.3f}) | {} | {} | {} | {} | {} | {:.1f} |\n",
                   m["name"].get<std::string>(), rate["median"].get<double>(), rate["min"].get<double>(),
                   rate["max"].get<double>(), ratio["median"].get<double>(), ratio["min"].get<double>(),
                   ratio["max"].get<double>(), percent(m, "hesitated", 0),
                   m.contains("second_pass_rows_per_token")
                       ? fmt::format("{:.2f}", m["second_pass_rows_per_token"].get<double>())
                       : "-",
                   percent(m, "fused_share", 0), percent(m, "outside_llama_decode", 2),
                   m.contains("twin_prefill_seconds")
                       ? fmt::format("{:.0f}", 1000 * m["twin_prefill_seconds"]["median"].get<double>())
                       : "-",
                   m["cache_bytes"].get<double>() / 1e6);
    }
    fmt::print("\ncost of a batch of n rows:");
    for (const json & c : context["cost_of_rows"]) {
        fmt::print(" c({}) = {:.2f}", c["rows"].get<int>(), c["relative"]["median"].get<double>());
    }
    fmt::print("\n");
}

int run(int argc, char ** argv) {
    Settings settings;
    CLI::App app(
        "What HARP costs on a model: plain llama.cpp, HARP off, fused, lazy, auto, redraw 1, alternating in one "
        "process. "
        "Prints Markdown.");
    app.add_option("-m,--model", settings.model, "GGUF file")->required()->check(CLI::ExistingFile);
    app.add_option("--contexts", settings.contexts, "tokens before the timed ones")
        ->delimiter(',')
        ->check(CLI::Range(2, 1 << 20))
        ->capture_default_str();
    app.add_option("--tokens", settings.n_tokens, "timed tokens per round")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--redraw-tokens", settings.n_redraw_tokens, "the same for redraw 1, which is slow; 0 skips it")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    app.add_option("--rounds", settings.n_rounds, "rounds")->check(CLI::PositiveNumber)->capture_default_str();
    app.add_option("-t,--threads", settings.n_threads, "threads")->check(CLI::PositiveNumber)->capture_default_str();
    app.add_flag("!--no-flash-attention", settings.flash_attention, "attention by matrix multiplication instead");
    app.add_option("--threshold", settings.threshold, "theta, bits")->capture_default_str();
    app.add_option("--json", settings.json_file, "also write everything to this file");
    CLI11_PARSE(app, argc, argv);

    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    const llama_model_ptr model(llama_model_load_from_file(settings.model.c_str(), llama_model_default_params()));
    if (!model) throw Error(ErrorCode::invalid_input, "model '" + settings.model + "' cannot be loaded");
    json result = header(*model, settings);
    fmt::print("{}; {} threads; {}; threshold {} bits; flash attention {}; {}\n{}\n", result["cpu"].get<std::string>(),
               settings.n_threads, result["model"].get<std::string>(), settings.threshold,
               settings.flash_attention ? "auto" : "off", result["build"].get<std::string>(),
               result["instructions"].get<std::string>());
    std::fflush(stdout);
    for (const int n_context : settings.contexts) {
        json context = ContextBench(*model, settings, n_context).run();
        print(context);
        std::fflush(stdout);
        result["contexts"].push_back(std::move(context));
    }
    if (!settings.json_file.empty()) {
        std::ofstream file(settings.json_file);
        file << result.dump(2) << '\n';
        if (!file.flush()) throw Error(ErrorCode::io, "cannot write '" + settings.json_file + "'");
    }
    return 0;
}

}  // namespace
}  // namespace harp::bench

int main(int argc, char ** argv) {
    try {
        return harp::bench::run(argc, argv);
    } catch (const std::exception & error) {
        fmt::print(stderr, "forward_bench: {}\n", error.what());
        return 1;
    }
}
