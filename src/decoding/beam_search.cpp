#include "decoding/beam_search.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "method/entropy.h"
#include "method/ranking.h"

namespace harp::decoding {

void validate(const BeamOptions & options) {
    const auto refuse = [](const std::string & field, const std::string & value, const std::string & range) {
        throw Error(ErrorCode::invalid_option, "option '" + field + "': " + value + " is out of range [" + range + "]");
    };
    if (options.beams < 1 || options.beams > llama_max_parallel_sequences()) {
        refuse("beams", std::to_string(options.beams), "1.." + std::to_string(llama_max_parallel_sequences()));
    }
    if (options.candidates < 1) refuse("beam-candidates", std::to_string(options.candidates), "1..");
    if (!std::isfinite(options.alpha) || options.alpha < 0)
        refuse("length-penalty", std::to_string(options.alpha), ">= 0");
}

std::vector<BeamCandidate> top_candidates(std::span<const float> logits, size_t k) {
    const double log_sum_exp = method::summarise_softmax(logits).log_sum_exp;
    std::vector<BeamCandidate> result;
    for (const llama_token token : method::greatest(logits, k))
        result.push_back({token, static_cast<double>(logits[static_cast<size_t>(token)]) - log_sum_exp});
    return result;
}

BeamSearch::BeamSearch(const BeamOptions & options, size_t max_length, IsEnd is_end)
    : options_(options), max_length_(max_length), is_end_(std::move(is_end)) {
    validate(options_);
    assert(max_length_ > 0);
    if (options_.variant == BeamVariant::authors) beams_.front().sum = 1.0;
}

size_t BeamSearch::n_candidates() const {
    // the prompt alone must be able to start all beams, even if as many candidates end at once
    return n_steps_ == 0 ? std::max<size_t>(options_.candidates, size_t{2} * options_.beams) : options_.candidates;
}

size_t BeamSearch::n_running() const {
    return static_cast<size_t>(
        std::count_if(beams_.begin(), beams_.end(), [](const Hypothesis & beam) { return !beam.is_finished; }));
}

double BeamSearch::score(double sum, size_t length) const {
    const auto n = static_cast<double>(length);
    return sum / std::pow(options_.norm == LengthNorm::gnmt ? (5.0 + n) / 6.0 : n, options_.alpha);
}

Hypothesis BeamSearch::extend(const Choice & choice, std::span<const StepRecord> records, bool is_finished) const {
    Hypothesis hypothesis = beams_[choice.beam];
    hypothesis.tokens.push_back(choice.candidate.token);
    hypothesis.records.push_back(records[choice.running]);
    hypothesis.sum = choice.sum;
    hypothesis.is_finished = is_finished;
    const size_t length = hypothesis.tokens.size();
    const bool lags = options_.variant == BeamVariant::authors && length > 1;
    hypothesis.score = score(choice.sum, lags ? length - 1 : length);
    return hypothesis;
}

const std::vector<BeamSearch::Branch> & BeamSearch::advance(std::span<const std::vector<BeamCandidate>> candidates,
                                                            std::span<const StepRecord> records) {
    assert(!is_done_ && candidates.size() == n_running() && records.size() == candidates.size());
    branches_.clear();
    if (options_.variant == BeamVariant::authors) {
        advance_authors(candidates, records);
    } else {
        advance_standard(candidates, records);
    }
    ++n_steps_;
    if (n_steps_ == max_length_) is_done_ = true;
    if (is_done_) branches_.clear();
    return branches_;
}

// ---------------------------------------------------------------------------------------------------------------------
// Standard

void BeamSearch::advance_standard(std::span<const std::vector<BeamCandidate>> candidates,
                                  std::span<const StepRecord> records) {
    std::vector<Choice> choices;
    for (size_t i = 0; i < beams_.size(); ++i) {
        for (const BeamCandidate & c : candidates[i]) choices.push_back({i, i, c, beams_[i].sum + c.log_probability});
    }
    // all running beams have the same length, so ranking by sums is ranking by scores
    std::stable_sort(choices.begin(), choices.end(), [](const Choice & a, const Choice & b) { return a.sum > b.sum; });

    std::vector<Hypothesis> next;
    for (size_t rank = 0; rank < choices.size() && next.size() < options_.beams; ++rank) {
        const Choice & choice = choices[rank];
        if (is_end_(choice.candidate.token)) {
            // an end token below the best beams gives no hypothesis: greedy search, with one beam, would not choose it
            if (rank < options_.beams) keep_finished(extend(choice, records, true));
        } else {
            branches_.push_back({choice.running, choice.candidate.token});
            next.push_back(extend(choice, records, false));
        }
    }
    beams_ = std::move(next);
    is_done_ = beams_.empty() || is_decided();
}

void BeamSearch::keep_finished(Hypothesis hypothesis) {
    const auto place = std::find_if(finished_.begin(), finished_.end(),
                                    [&](const Hypothesis & other) { return other.score < hypothesis.score; });
    finished_.insert(place, std::move(hypothesis));
    if (finished_.size() > options_.beams) finished_.pop_back();
}

bool BeamSearch::is_decided() const {
    if (finished_.size() < options_.beams) return false;
    if (options_.early_stopping == EarlyStopping::first) return true;
    const bool at_full_length = options_.early_stopping == EarlyStopping::never && options_.alpha > 0;
    const size_t length = at_full_length ? max_length_ : beams_.front().tokens.size();
    return score(beams_.front().sum, length) <= finished_.back().score;
}

// ---------------------------------------------------------------------------------------------------------------------
// The authors' code, as observed in its runs

void BeamSearch::advance_authors(std::span<const std::vector<BeamCandidate>> candidates,
                                 std::span<const StepRecord> records) {
    struct Entry {
        Hypothesis hypothesis;
        size_t running;  // number of the running beam that it continues
    };
    const size_t n_taken = n_steps_ == 0 ? options_.beams : options_.candidates;
    std::vector<Entry> entries;
    size_t running = 0;
    for (size_t i = 0; i < beams_.size(); ++i) {
        if (beams_[i].is_finished) {
            entries.push_back({beams_[i], 0});
            continue;
        }
        for (size_t k = 0; k < std::min(n_taken, candidates[running].size()); ++k) {
            const BeamCandidate & c = candidates[running][k];
            const bool ends = n_steps_ > 0 && (is_end_(c.token) || c.token == 0);
            entries.push_back({extend({i, running, c, beams_[i].sum + c.log_probability}, records, ends), running});
        }
        ++running;
    }
    std::stable_sort(entries.begin(), entries.end(),
                     [](const Entry & a, const Entry & b) { return a.hypothesis.score > b.hypothesis.score; });
    if (entries.size() > options_.beams) entries.resize(options_.beams);

    beams_.clear();
    for (Entry & entry : entries) {
        if (!entry.hypothesis.is_finished) branches_.push_back({entry.running, entry.hypothesis.tokens.back()});
        beams_.push_back(std::move(entry.hypothesis));
    }
    is_done_ = n_running() == 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// Result

std::vector<Hypothesis> BeamSearch::best(size_t n) const {
    std::vector<Hypothesis> result = beams_;
    if (options_.variant == BeamVariant::standard) {
        if (beams_.empty() || is_decided()) result.clear();
        result.insert(result.begin(), finished_.begin(), finished_.end());
        std::stable_sort(result.begin(), result.end(),
                         [](const Hypothesis & a, const Hypothesis & b) { return a.score > b.score; });
    }
    if (result.size() > n) result.resize(n);
    return result;
}

}  // namespace harp::decoding
