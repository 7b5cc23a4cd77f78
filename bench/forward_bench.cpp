// What HARP costs: plain llama.cpp, HARP off, fused, lazy, auto and redraw 1 on one model, in one process, alternating.
//
// All methods are fed the same text, so all do the same steps. Equality comes first: HARP off must give plain llama.cpp's
// logits bit for bit. Timed is a decode call with the logits ready; sampling and tokenizing are not.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>

#include "forward/batch_rows.h"
#include "harp/forward_pass.h"
#include "llama-cpp.h"

namespace harp::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char * text =
    "The harbour lay quiet before sunrise. A fishing boat came in with its lamps still lit, and an old man on the quay "
    "caught the rope without looking up from his pipe. He had counted boats here for forty years: which ones came back "
    "early, which came back late, and the two that had not come back at all. When the sun rose over the breakwater, "
    "the "
    "market opened, and the first buyers asked what the night had brought. ";

struct Settings {
    std::string model;
    std::vector<int> contexts = {128, 512, 2048};
    int n_tokens = 48;
    int n_redraw_tokens = 6;
    int n_rounds = 5;
    int n_threads = 2;
    double threshold = 1.0;
};

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const size_t n = values.size();
    return n == 0 ? 0 : (values[(n - 1) / 2] + values[n / 2]) / 2;
}

std::vector<llama_token> tokenize(const llama_vocab * vocab, size_t n) {
    std::string long_text;
    std::vector<llama_token> tokens(n + 64);
    int32_t found = 0;
    do {
        long_text += text;
        found = llama_tokenize(vocab, long_text.data(), static_cast<int32_t>(long_text.size()), tokens.data(),
                               static_cast<int32_t>(tokens.size()), true, false);
    } while (found >= 0 && static_cast<size_t>(found) < n);
    tokens.resize(n);
    return tokens;
}

/// One way to decode the text: a pass of its own, or a plain context.
struct Method {
    std::string name;
    std::unique_ptr<ForwardPass> pass;  // null: plain llama.cpp
    llama_context_ptr plain;
    int n_tokens = 0;                     // timed steps of a round
    std::vector<double> seconds = {};     // [round], per token
    Statistics statistics = {};           // of the timed steps
    std::vector<float> last_logits = {};  // of the round's last step

    void clear() { pass ? pass->memory_clear(false) : llama_memory_clear(llama_get_memory(plain.get()), false); }
    void decode(const llama_token * tokens, int n, int first) {
        forward::BatchRows rows;
        const llama_seq_id sequence = 0;
        for (int i = 0; i < n; ++i) rows.add(tokens[i], first + i, {&sequence, 1}, i + 1 == n);
        if (pass) {
            pass->decode(rows.view());
        } else if (llama_decode(plain.get(), rows.view()) != 0) {
            throw Error(ErrorCode::decode_failed, "llama_decode failed");
        }
    }
    [[nodiscard]] const float * logits() { return pass ? pass->logits(-1) : llama_get_logits_ith(plain.get(), -1); }
};

class Bench {
  public:
    Bench(llama_model & model, const Settings & settings) : model_(model), settings_(settings) {}

    void run(int n_context) {
        const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(&model_));
        const auto tokens =
            tokenize(llama_model_get_vocab(&model_), static_cast<size_t>(n_context + settings_.n_tokens + 1));
        std::vector<Method> methods = make_methods(n_context);
        for (int round = -1; round < settings_.n_rounds; ++round) {  // the first is warm-up
            for (Method & method : methods) run_round(method, tokens, n_context, round >= 0, n_vocab);
        }
        const bool equal = methods[0].last_logits == methods[1].last_logits;
        fmt::print("\ncontext {}: {} timed tokens a round, {} rounds; HARP off equals plain llama.cpp: {}\n\n",
                   n_context, settings_.n_tokens, settings_.n_rounds, equal ? "bit for bit" : "NO");
        if (!equal) throw Error(ErrorCode::decode_failed, "HARP off differs from plain llama.cpp");
        print(methods);
    }

  private:
    std::vector<Method> make_methods(int n_context) {
        llama_context_params params = llama_context_default_params();
        params.n_ctx = static_cast<uint32_t>(n_context + settings_.n_tokens + 8);
        params.n_batch = 2048;
        params.n_threads = params.n_threads_batch = settings_.n_threads;
        std::vector<Method> methods;
        methods.push_back({"plain llama.cpp", nullptr, llama_context_ptr(llama_init_from_model(&model_, params)),
                           settings_.n_tokens});
        const auto add = [&](const std::string & name, const std::optional<Options> & options, int n_tokens) {
            methods.push_back({name, std::make_unique<ForwardPass>(model_, params, options), nullptr, n_tokens});
        };
        Options options;
        options.threshold = settings_.threshold;
        add("HARP off", std::nullopt, settings_.n_tokens);
        options.schedule = Schedule::fused;
        add("fused", options, settings_.n_tokens);
        options.schedule = Schedule::lazy;
        add("lazy", options, settings_.n_tokens);
        options.schedule = Schedule::automatic;
        add("auto", options, settings_.n_tokens);
        options.redraw = 1;
        add("redraw 1", options, settings_.n_redraw_tokens);
        return methods;
    }

    /// The prompt, with the twin caught up (its prefill is paid once an answer, not a token), then the timed steps.
    static void run_round(Method & method, const std::vector<llama_token> & tokens, int n_context, bool timed,
                          int n_vocab) {
        method.clear();
        method.decode(tokens.data(), n_context, 0);
        int at = n_context;
        const int n_lead = method.pass && method.pass->enabled() && method.name != "redraw 1" ? 4 : 0;
        // lead-in: a first hesitation makes the twin's prefill; those steps are decoded again below
        for (int i = 0; i < n_lead; ++i) method.decode(&tokens[static_cast<size_t>(at + i)], 1, at + i);
        if (n_lead > 0) method.pass->memory_seq_rm(0, at, -1);
        if (method.pass) method.pass->reset_statistics();
        const auto start = Clock::now();
        for (int i = 0; i < method.n_tokens; ++i, ++at) {
            method.decode(&tokens[static_cast<size_t>(at)], 1, at);
            method.last_logits.assign(method.logits(), method.logits() + (i + 1 == method.n_tokens ? n_vocab : 0));
        }
        const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
        if (!timed) return;
        method.seconds.push_back(seconds / method.n_tokens);
        if (method.pass) method.statistics = method.pass->statistics();
    }

    void print(const std::vector<Method> & methods) const {
        fmt::print(
            "| method | tokens/s (median) | time per token relative to plain (median, min..max) | hesitated | twin "
            "rows a token | outside llama_decode |\n");
        fmt::print("|---|---|---|---|---|---|\n");
        for (const Method & m : methods) {
            std::vector<double> ratios;
            for (size_t i = 0; i < m.seconds.size(); ++i) ratios.push_back(m.seconds[i] / methods[0].seconds[i]);
            const auto [low, high] = std::minmax_element(ratios.begin(), ratios.end());
            const Statistics & s = m.statistics;
            const double steps = std::max<double>(1, static_cast<double>(s.steps));
            const std::string share =
                s.steps > 0 ? fmt::format("{:.0f} %", 100.0 * static_cast<double>(s.hesitations) / steps) : "-";
            const std::string rows =
                s.steps > 0 ? fmt::format("{:.2f}", static_cast<double>(s.second_pass_rows) / steps) : "-";
            const std::string outside =
                s.total_seconds > 0 ? fmt::format("{:.2f} %", 100.0 * (1 - s.llama_seconds / s.total_seconds)) : "-";
            fmt::print("| {} | {:.1f} | {:.3f} ({:.3f}..{:.3f}) | {} | {} | {} |\n", m.name, 1 / median(m.seconds),
                       median(ratios), *low, *high, share, rows, outside);
        }
    }

    llama_model & model_;
    const Settings & settings_;
};

int run(int argc, char ** argv) {
    Settings settings;
    CLI::App app(
        "What HARP costs on a model: plain llama.cpp, HARP off, fused, lazy, auto, redraw 1, alternating in one "
        "process.");
    app.add_option("-m,--model", settings.model, "GGUF file")->required()->check(CLI::ExistingFile);
    app.add_option("--contexts", settings.contexts, "tokens before the timed ones")
        ->delimiter(',')
        ->capture_default_str();
    app.add_option("--tokens", settings.n_tokens, "timed tokens a round")->capture_default_str();
    app.add_option("--redraw-tokens", settings.n_redraw_tokens, "the same for redraw 1")->capture_default_str();
    app.add_option("--rounds", settings.n_rounds, "rounds")->capture_default_str();
    app.add_option("-t,--threads", settings.n_threads, "threads")->capture_default_str();
    app.add_option("--threshold", settings.threshold, "theta, bits")->capture_default_str();
    CLI11_PARSE(app, argc, argv);

    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_model_ptr model(llama_model_load_from_file(settings.model.c_str(), llama_model_default_params()));
    if (!model) throw Error(ErrorCode::invalid_input, "model '" + settings.model + "' cannot be loaded");
    std::array<char, 128> description{};
    llama_model_desc(model.get(), description.data(), description.size());
    fmt::print("model {}; {} threads; threshold {} bits\n{}\n", description.data(), settings.n_threads,
               settings.threshold, llama_print_system_info());
    Bench bench(*model, settings);
    for (const int n_context : settings.contexts) bench.run(n_context);
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
