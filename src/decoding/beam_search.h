// Beam search as a pure search: which continuations survive a step. Knows no model; generate.h runs it on one.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "harp/forward_pass.h"

namespace harp::decoding {

/// When a search with enough finished hypotheses ends. The names and rules of Hugging Face `generate(early_stopping=...)`.
enum class EarlyStopping {
    first,      ///< True: as soon as there are `beams` finished hypotheses
    heuristic,  ///< False: when the best running beam, at its present length, scores below the worst of them
    never,      ///< "never": when no running beam can reach the worst of them any more, at any length
};

/// What the sum of log-probabilities of L tokens is divided by.
enum class LengthNorm {
    gnmt,    ///< ((5 + L) / 6)^alpha  (Wu et al. 2016; the HARP authors' code)
    length,  ///< L^alpha              (Hugging Face)
};

/// Whose beam search.
enum class BeamVariant {
    standard,  ///< finished hypotheses are set aside and the search goes on with `beams` unfinished ones
    /// The HARP authors' code: sums begin at 1; the length is 1, 1, 2, 3, ...; a stop token in the first step does not end a
    /// beam; token 0 ends one; a finished beam keeps its place among the beams; the search ends when all are finished.
    authors,
};

struct BeamOptions {
    uint32_t beams = 3;
    uint32_t candidates = 5;  ///< best continuations considered of each beam
    double alpha = 1.2;       ///< length penalty; above 0 favours longer hypotheses, below 0 shorter ones
    LengthNorm norm = LengthNorm::gnmt;
    EarlyStopping early_stopping = EarlyStopping::heuristic;
    BeamVariant variant = BeamVariant::standard;
};

/// Throws Error{invalid_option} naming field, value and range.
void validate(const BeamOptions & options);

/// One possible next token of a beam.
struct BeamCandidate {
    llama_token token = 0;
    double log_probability = 0;
};
/// The `k` most probable tokens, most probable first (ties by id).
/// @param logits [n_vocab]
[[nodiscard]] std::vector<BeamCandidate> top_candidates(std::span<const float> logits, size_t k);

/// A sequence of generated tokens with what it is ranked by.
struct Hypothesis {
    std::vector<llama_token> tokens;
    std::vector<StepRecord> records;  ///< [tokens], of the step that chose each
    double sum = 0;                   ///< of the tokens' log-probabilities
    double score = 0;                 ///< the sum, normalised by length
    bool is_finished = false;         ///< ends with an end token
};

class BeamSearch {
  public:
    using IsEnd = std::function<bool(llama_token)>;
    /// @param max_length tokens of the longest hypothesis, at least 1
    BeamSearch(const BeamOptions & options, size_t max_length, IsEnd is_end);

    /// How many candidates advance() wants of each running beam.
    [[nodiscard]] size_t n_candidates() const;

    /// Which running beam, as numbered before the step, a running beam continues, and by which token.
    struct Branch {
        size_t parent = 0;
        llama_token token = 0;
    };
    /// One step. At first one beam is running: the prompt.
    /// @param candidates [running beams], each most probable first
    /// @param records    [running beams], of the step that gave the candidates
    /// @return the running beams after the step; none when the search is done
    const std::vector<Branch> & advance(std::span<const std::vector<BeamCandidate>> candidates,
                                        std::span<const StepRecord> records);

    [[nodiscard]] bool is_done() const noexcept { return is_done_; }
    [[nodiscard]] size_t n_running() const;
    /// State of the beams, best first: standard, the running ones; authors, their slots.
    [[nodiscard]] const std::vector<Hypothesis> & beams() const noexcept { return beams_; }
    /// The result so far, best first, at most `n`: finished hypotheses, and the running beams where the search was not decided.
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
