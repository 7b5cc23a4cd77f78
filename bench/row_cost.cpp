// c(n): what a batch of n rows costs, with ggml's kernels and with ours, on one model, in one process, alternating.
//
// The model is loaded twice. Each row is the next token of a separate sequence, as with HARP's twins and with beams.
// Before timing, both are compared by log-probabilities after the same tokens. The unit of times is one row with ggml's
// kernels. The same run reads memory with as many threads, to show how near one row is to the speed of memory.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <numeric>
#include <string_view>
#include <thread>

#include "decoding/machine.h"
#include "decoding/spread.h"
#include "forward/batch_rows.h"
#include "gguf.h"
#include "harp/error.h"
#include "harp/kernels.h"
#include "kernels/multiply.h"
#include "llama-cpp.h"

namespace harp::bench {
namespace {

using Clock = std::chrono::steady_clock;
using decoding::Spread;
using decoding::spread_of;

struct Settings {
    std::string model;
    std::vector<int> rows = {1, 2, 3, 4, 5, 6, 7, 8, 16};
    int n_rounds = 9;
    int n_context = 32;  // tokens of each sequence before the timed ones
    int n_threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
    bool is_prompt = false;  // rows are tokens of one sequence, with logits at the last, instead of separate sequences
};

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

/// A model loaded with or without our kernels, and a context for the largest batch.
class Loaded {
  public:
    Loaded(const Settings & settings, bool is_ours) : settings_(settings) {
        harp_set_kernels(is_ours);
        model_.reset(llama_model_load_from_file(settings.model.c_str(), llama_model_default_params()));
        if (!model_) throw Error(ErrorCode::io, "cannot load " + settings.model);
        const int n_most = *std::max_element(settings.rows.begin(), settings.rows.end());
        llama_context_params params = llama_context_default_params();
        const int n_sequences = settings.is_prompt ? 1 : n_most;
        params.n_seq_max = static_cast<uint32_t>(n_sequences);
        params.n_ctx =
            static_cast<uint32_t>(settings.is_prompt ? settings.n_context + n_most : n_most * (settings.n_context + 8));
        params.n_threads = params.n_threads_batch = settings.n_threads;
        context_.reset(llama_init_from_model(model_.get(), params));
        if (!context_) throw Error(ErrorCode::decode_failed, "no context for that many rows");
        forward::BatchRows rows;
        for (llama_seq_id sequence = 0; sequence < n_sequences; ++sequence) {
            rows.clear();
            for (int i = 0; i < settings.n_context; ++i) rows.add(token(sequence, i), i, {&sequence, 1}, false);
            decode(rows);
        }
    }

    /// Seconds of one batch of `n` rows. Leaves the context as it was.
    double time(int n) {
        forward::BatchRows rows;
        for (int i = 0; i < n; ++i) {
            const llama_seq_id sequence = settings_.is_prompt ? 0 : i;
            const int position = settings_.n_context + (settings_.is_prompt ? i : 0);
            rows.add(token(sequence, position), position, {&sequence, 1}, !settings_.is_prompt || i == n - 1);
        }
        const Clock::time_point start = Clock::now();
        decode(rows);
        const double seconds = seconds_since(start);
        for (llama_seq_id sequence = 0; sequence < (settings_.is_prompt ? 1 : n); ++sequence) {
            llama_memory_seq_rm(llama_get_memory(context_.get()), sequence, settings_.n_context, -1);
        }
        return seconds;
    }

    /// Log-probabilities after the last batch's row `i`.
    [[nodiscard]] std::vector<double> log_probabilities(int i) const {
        const float * logits = llama_get_logits_ith(context_.get(), i);
        const auto n = static_cast<size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model_.get())));
        std::vector<double> values(logits, logits + n);
        const double top = *std::max_element(values.begin(), values.end());
        double sum = 0;
        for (const double value : values) sum += std::exp(value - top);
        for (double & value : values) value -= top + std::log(sum);
        return values;
    }

  private:
    [[nodiscard]] llama_token token(llama_seq_id sequence, int i) const {
        return (sequence * 131 + i * 17) % (llama_vocab_n_tokens(llama_model_get_vocab(model_.get())) - 10) + 5;
    }
    void decode(forward::BatchRows & rows) {
        if (llama_decode(context_.get(), rows.view()) != 0)
            throw Error(ErrorCode::decode_failed, "llama_decode failed");
    }

    const Settings & settings_;
    llama_model_ptr model_;
    llama_context_ptr context_;
};

/// Bytes of weights that each row reads: all weights except an embedding table, of which a row takes one line.
double bytes_of_weights(const std::string & path) {
    const std::unique_ptr<gguf_context, decltype(&gguf_free)> file(gguf_init_from_file(path.c_str(), {true, nullptr}),
                                                                   &gguf_free);
    if (!file) throw Error(ErrorCode::io, "cannot read " + path);
    const bool is_tied = gguf_find_tensor(file.get(), "output.weight") < 0;
    size_t bytes = 0;
    for (int64_t i = 0; i < gguf_get_n_tensors(file.get()); ++i) {
        const bool is_table = std::string_view(gguf_get_tensor_name(file.get(), i)) == "token_embd.weight";
        if (!is_table || is_tied) bytes += gguf_get_tensor_size(file.get(), i);
    }
    return static_cast<double>(bytes);
}

/// Kullback-Leibler divergence of the distribution with log-probabilities `b` from that with `a`, nats.
/// @throws Error{decode_failed} if it is not a number, since NaN compares as neither larger nor smaller and would pass
///                              as equal
double divergence(const std::vector<double> & a, const std::vector<double> & b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        const double probability = std::exp(a[i]);
        if (probability != 0) sum += probability * (a[i] - b[i]);
    }
    if (!std::isfinite(sum)) throw Error(ErrorCode::decode_failed, "the divergence of two distributions is no number");
    return sum;
}

/// Largest divergences of distributions after the same tokens. Exactly 0 if all weights are of K types and both kernels
/// have one output per lane: they add integers within a block, and add blocks in order (Qwen2.5-Coder-1.5B Q4_K_M with
/// VNNI and AMX).
struct Differences {
    double of_ours = 0;   // ours from ggml's, in a batch of the same size
    double of_ggmls = 0;  // ggml's in a batch of another size from ggml's in one of the first size
};

/// Reads memory as fast as possible, which is the best that kernels can do.
class MemoryReader {
  public:
    explicit MemoryReader(int n_threads)
        : n_threads_(static_cast<size_t>(n_threads)), memory_((size_t{512} << 20) / sizeof(uint64_t), 1) {}

    /// Bytes per second, the best of three readings: during the first, threads of a model may still be spinning.
    [[nodiscard]] double speed() const { return std::max({read(), read(), read()}); }

  private:
    [[nodiscard]] double read() const {
        const size_t part = memory_.size() / n_threads_ / 8 * 8;
        std::vector<uint64_t> sums(n_threads_ * 8);  // each on its own cache line
        const Clock::time_point start = Clock::now();
        std::vector<std::thread> threads;
        for (size_t i = 0; i < n_threads_; ++i) {
            threads.emplace_back([&, i] {
                uint64_t sum = 0;
                for (const uint64_t * at = memory_.data() + i * part; at < memory_.data() + (i + 1) * part; at += 8) {
                    __builtin_prefetch(at + 512);  // a page ahead, like our kernels
                    sum += std::accumulate(at, at + 8, uint64_t{0});
                }
                sums[i * 8] = sum;
            });
        }
        for (std::thread & thread : threads) thread.join();
        const double seconds = seconds_since(start);
        // also keeps the compiler from removing the reading
        if (sums[0] != part) throw Error(ErrorCode::decode_failed, "memory was not read");
        return static_cast<double>(part * n_threads_ * sizeof(uint64_t)) / seconds;
    }

    size_t n_threads_;
    std::vector<uint64_t> memory_;
};

void print(const Settings & settings, const std::vector<std::vector<double>> & ggml,
           const std::vector<std::vector<double>> & ours) {
    fmt::print(
        "| rows | ggml, ms | ours, ms | ggml, x its one row | ours, x ggml's one row | ours, x ggml's as many |\n");
    fmt::print("|---|---|---|---|---|---|\n");
    const auto told = [](const Spread & s) { return fmt::format("{:.2f} ({:.2f}..{:.2f})", s.median, s.low, s.high); };
    for (size_t i = 0; i < settings.rows.size(); ++i) {
        std::vector<double> of_ggml, of_ours, against;
        for (size_t round = 0; round < ours[i].size(); ++round) {
            of_ggml.push_back(ggml[i][round] / ggml[0][round]);
            of_ours.push_back(ours[i][round] / ggml[0][round]);
            against.push_back(ours[i][round] / ggml[i][round]);
        }
        fmt::print("| {} | {:.2f} | {:.2f} | {} | {} | {} |\n", settings.rows[i], 1e3 * spread_of(ggml[i]).median,
                   1e3 * spread_of(ours[i]).median, told(spread_of(of_ggml)), told(spread_of(of_ours)),
                   told(spread_of(against)));
    }
}

int run(int argc, char ** argv) {
    Settings settings;
    std::string instructions;
    CLI::App app("What a batch of n rows costs, with ggml's kernels and with ours. Run it on an idle machine.");
    app.add_option("-m,--model", settings.model,
                   "GGUF file in a format of our kernels: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL, "
                   "IQ4_XS, MXFP4")
        ->required();
    app.add_option("--rows", settings.rows, "sizes of batches; the first is the unit of times")
        ->delimiter(',')
        ->check(CLI::Range(1, 2048));
    app.add_flag("--prompt", settings.is_prompt, "rows are tokens of one prompt instead of separate sequences");
    app.add_option("--kernels", instructions, "instructions of our kernels: avx2, vnni, amx");
    app.add_option("--rounds", settings.n_rounds, "measured rounds, after one to warm up")->check(CLI::Range(1, 1000));
    app.add_option("--context", settings.n_context, "tokens of each sequence before the timed ones")
        ->check(CLI::Range(1, 100000));
    app.add_option("-t,--threads", settings.n_threads, "threads")->check(CLI::Range(1, 512));
    CLI11_PARSE(app, argc, argv);
    if (settings.rows.empty()) settings.rows = {1};
    if (!instructions.empty() && !harp_set_kernel_instructions(instructions.c_str())) {
        throw Error(ErrorCode::invalid_option,
                    "--kernels " + instructions + ": this processor has " + harp_kernel_instructions());
    }

    llama_log_set(
        [](ggml_log_level level, const char * text, void *) {
            if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
        },
        nullptr);
    Loaded ggml(settings, false), ours(settings, true);
    std::vector<std::vector<double>> ggml_seconds(settings.rows.size()), our_seconds(settings.rows.size());
    Differences differences;
    const MemoryReader memory(settings.n_threads);
    std::vector<double> memory_speeds;
    std::vector<double> first;  // ggml's for the first row, in a batch of the first size
    for (int round = -1; round < settings.n_rounds; ++round) {
        if (round >= 0) memory_speeds.push_back(memory.speed());
        for (size_t i = 0; i < settings.rows.size(); ++i) {
            const double of_ggml = ggml.time(settings.rows[i]);
            const double of_ours = ours.time(settings.rows[i]);
            if (round < 0) {
                for (int row = settings.is_prompt ? settings.rows[i] - 1 : 0; row < settings.rows[i]; ++row) {
                    differences.of_ours = std::max(
                        differences.of_ours, divergence(ggml.log_probabilities(row), ours.log_probabilities(row)));
                }
                if (settings.is_prompt) continue;
                if (i == 0) first = ggml.log_probabilities(0);
                differences.of_ggmls = std::max(differences.of_ggmls, divergence(first, ggml.log_probabilities(0)));
            } else {
                ggml_seconds[i].push_back(of_ggml);
                our_seconds[i].push_back(of_ours);
            }
        }
    }
    fmt::print("{}; {} threads; kernels for {}; {} rounds, medians (least..greatest)\n", decoding::cpu_model(),
               settings.n_threads, harp_kernel_instructions(), settings.n_rounds);
    fmt::print(
        "Largest divergence of a distribution of ours from ggml's: {:.1e} nats; of ggml's own in other batches: "
        "{:.1e}.\n",
        differences.of_ours, differences.of_ggmls);
    const double n_bytes = bytes_of_weights(settings.model);
    const auto share = [&](const std::vector<double> & seconds) {
        std::vector<double> shares;
        for (size_t i = 0; i < seconds.size(); ++i) {
            shares.push_back(100 * n_bytes / seconds[i] / memory_speeds[i]);
        }
        return spread_of(shares).median;
    };
    fmt::print(
        "Memory is read at {:.1f} GB/s; one row reads {:.0f} MB of weights at {:.0f} % of that, with ggml's at {:.0f} "
        "%.\n\n",
        spread_of(memory_speeds).median / 1e9, n_bytes / 1e6, share(our_seconds[0]), share(ggml_seconds[0]));
    print(settings, ggml_seconds, our_seconds);
    return 0;
}

}  // namespace
}  // namespace harp::bench

int main(int argc, char ** argv) {
    try {
        return harp::bench::run(argc, argv);
    } catch (const std::exception & error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
