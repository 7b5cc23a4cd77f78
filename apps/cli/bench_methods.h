// harp bench: the methods that it measures, and one measurement of one method.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "decoding/drafter.h"
#include "decoding/generate.h"
#include "model/loaded_model.h"

namespace harp::cli {

/// A method, as --methods names it.
struct BenchKind {
    std::string name;
    std::string meaning;
    bool hesitates = false;                           ///< HARP on
    std::optional<Schedule> schedule = std::nullopt;  ///< replaces the flags' schedule
    std::optional<uint32_t> redraw = std::nullopt;    ///< replaces the flags' redraw
    bool beams = false;                               ///< beam search
    enum class Draft { none, lookup, model } draft = Draft::none;
    bool samples = false;        ///< nucleus sampling; otherwise greedy
    uint32_t pause = 0;          ///< pause tokens before the answer
    bool stock = false;          ///< on a second model, loaded with llama.cpp's own kernels
    std::string reference = {};  ///< the method that must give the same tokens, if there is one
};
[[nodiscard]] const std::vector<BenchKind> & bench_kinds();

/// One run of one prompt.
struct BenchRun {
    std::vector<llama_token> tokens;
    size_t n_steps = 0;         ///< decoding steps: tokens, or steps of a beam search
    double prompt_seconds = 0;  ///< reading of the prompt, also by its twins
    double first_token_seconds = 0;
    double decode_seconds = 0;  ///< from the prompt's end to the last token
    // while decoding: without the prompt's last row and without the twins' reading of the prompt
    uint64_t n_judged = 0, n_hesitations = 0, n_twin_rows = 0;
};

/// A method with the context, sampler and drafter that it runs on. All methods' contexts exist at the same time, so
/// that rounds can be interleaved.
class BenchMethod {
  public:
    struct Settings {
        Options options;  ///< of HARP
        decoding::BeamOptions beams;
        size_t n_predict = 64;  ///< exact number of tokens of each answer: end tokens do not end it
    };
    /// @throws what LoadedModel::add_pass and Drafter::make throw
    BenchMethod(LoadedModel & loaded, const BenchKind & kind, const Settings & settings);

    [[nodiscard]] const BenchKind & kind() const noexcept { return kind_; }
    /// @throws Error{invalid_option} if the answer is shorter than it must be, what Generator throws
    [[nodiscard]] BenchRun run(const std::vector<llama_token> & prompt);
    [[nodiscard]] ForwardPass & pass() noexcept { return pass_; }
    [[nodiscard]] const decoding::Drafter * drafter() const noexcept { return drafter_.get(); }

  private:
    void count(const Statistics & before, BenchRun & run) const;
    void check_length(const decoding::GenerationResult & result) const;
    BenchRun run_beams(const std::vector<llama_token> & prompt);
    BenchRun run_sampling(const std::vector<llama_token> & prompt);

    BenchKind kind_;
    Settings settings_;
    LoadedModel & loaded_;
    ForwardPass & pass_;
    common_params_sampling sampling_;
    std::unique_ptr<decoding::Drafter> drafter_;
};

}  // namespace harp::cli
