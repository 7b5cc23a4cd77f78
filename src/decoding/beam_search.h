// Beam search as a pure search: which continuations survive a step. It knows no model; generate.h runs it on one.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "harp/forward_pass.h"

namespace harp::decoding {

/// When a search with enough finished hypotheses ends. Names and rules are those of Hugging Face
/// `generate(early_stopping=...)`.
enum class EarlyStopping {
    first,      ///< True: as soon as there are `beams` finished hypotheses
    heuristic,  ///< False: when the best running beam, at its current length, does not score above the worst of them
    never,      ///< "never": when no running beam can score above the worst of them at any length
};

/// The divisor of the sum of log-probabilities of L tokens.
enum class LengthNorm {
    gnmt,    ///< ((5 + L) / 6)^alpha  (Wu et al. 2016; the HARP authors' code)
    length,  ///< L^alpha              (Hugging Face)
};

/// Which implementation's rules.
enum class BeamVariant {
    standard,  ///< finished hypotheses are set aside, and the search continues with `beams` unfinished ones
    /// The HARP authors' code: sums begin at 1; the length counts 1, 1, 2, 3, ...; a stop token in the first step does
    /// not end a beam; token 0 ends one; a finished beam keeps its place among the beams; the search ends when all are
    /// finished.
    authors,
};

struct BeamOptions {
    uint32_t beams = 3;
    uint32_t candidates = 5;  ///< best continuations considered for each beam
    double alpha = 1.2;       ///< length penalty; above 0 favours longer hypotheses, below 0 shorter ones
    LengthNorm norm = LengthNorm::gnmt;
    EarlyStopping early_stopping = EarlyStopping::heuristic;
    BeamVariant variant = BeamVariant::standard;
};

/// @throws Error{invalid_option} naming field, value and range
void validate(const BeamOptions & options);

/// One possible next token of a beam.
struct BeamCandidate {
    llama_token token = 0;
    double log_probability = 0;
};
/// The `k` most probable tokens, most probable first (ties by id).
/// @param logits [n_vocab]
[[nodiscard]] std::vector<BeamCandidate> top_candidates(std::span<const float> logits, size_t k);

/// A sequence of generated tokens and the numbers that rank it.
struct Hypothesis {
    std::vector<llama_token> tokens;
    std::vector<StepRecord> records;  ///< [tokens], the step that chose each
    double sum = 0;                   ///< of the tokens' log-probabilities
    double score = 0;                 ///< the sum, normalised by length
    bool is_finished = false;         ///< ends with an end token
};

class BeamSearch {
  public:
    using IsEnd = std::function<bool(llama_token)>;
    /// @param max_length the most tokens that a hypothesis can have, at least 1
    BeamSearch(const BeamOptions & options, size_t max_length, IsEnd is_end);

    /// How many candidates advance() needs for each running beam.
    [[nodiscard]] size_t n_candidates() const;

    /// A running beam after a step: which running beam before the step it continues, and with which token.
    struct Branch {
        size_t parent = 0;
        llama_token token = 0;
    };
    /// Takes one step. Before the first one a single beam is running: the prompt.
    /// @param candidates [running beams], each most probable first
    /// @param records    [running beams], the steps that gave the candidates
    /// @return the running beams after the step; empty when the search is done
    const std::vector<Branch> & advance(std::span<const std::vector<BeamCandidate>> candidates,
                                        std::span<const StepRecord> records);

    [[nodiscard]] bool is_done() const noexcept { return is_done_; }
    [[nodiscard]] size_t n_running() const;
    /// The current beams, best first: with `standard` the running ones, with `authors` all slots.
    [[nodiscard]] const std::vector<Hypothesis> & beams() const noexcept { return beams_; }
    /// The result so far, best first, at most `n`: finished hypotheses, and running beams unless the search is decided.
    [[nodiscard]] std::vector<Hypothesis> best(size_t n) const;

  private:
    struct Choice {
        size_t beam = 0;     // index in beams_
        size_t running = 0;  // its number among the running ones
        BeamCandidate candidate;
        double sum = 0;
    };
    [[nodiscard]] double score(double sum, size_t length) const;
    [[nodiscard]] Hypothesis extend(const Choice & choice, std::span<const StepRecord> records, bool is_finished) const;
    void advance_standard(std::span<const std::vector<BeamCandidate>> candidates, std::span<const StepRecord> records);
    void advance_authors(std::span<const std::vector<BeamCandidate>> candidates, std::span<const StepRecord> records);
    void keep_finished(Hypothesis hypothesis);
    [[nodiscard]] bool is_decided() const;

    BeamOptions options_;
    size_t max_length_;
    IsEnd is_end_;
    std::vector<Hypothesis> beams_ = {{}};
    std::vector<Hypothesis> finished_;  // at most `beams`, best first
    std::vector<Branch> branches_;
    size_t n_steps_ = 0;
    bool is_done_ = false;
};

}  // namespace harp::decoding
