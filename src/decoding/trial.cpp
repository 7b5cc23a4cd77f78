#include "decoding/trial.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "decoding/batch_score.h"
#include "decoding/feed.h"

namespace harp::decoding {

namespace {

/// Groups the sets by reading. Vanilla sets need none, and join the first.
std::vector<Reading> readings_of(std::span<const Options> sets) {
    std::vector<Reading> readings = group_by_reading(sets);
    if (readings.empty()) readings.emplace_back();
    for (size_t i = 0; i < sets.size(); ++i) {
        if (!sets[i].is_vanilla()) continue;
        readings.front().members.push_back(i);
        readings.front().options.push_back(sets[i]);
    }
    return readings;
}

double log_likelihood(const ScoreResult & result) {
    return std::accumulate(result.tokens.begin(), result.tokens.end(), 0.0,
                           [](double sum, const TokenScore & token) { return sum + token.harp; });
}

/// @param results [continuations]
double value_of(const TrialExample & example, const std::vector<ScoreResult> & results, Metric metric) {
    const ScoreResult & right = results[example.answer];
    if (metric == Metric::log_likelihood) return log_likelihood(right) / static_cast<double>(right.tokens.size());
    if (results.size() == 1) return right.is_greedy ? 1 : 0;
    const auto best = std::max_element(
        results.begin(), results.end(),
        [](const ScoreResult & a, const ScoreResult & b) { return log_likelihood(a) < log_likelihood(b); });
    return best - results.begin() == static_cast<std::ptrdiff_t>(example.answer) ? 1 : 0;
}

}  // namespace

double TrialResult::mean() const {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double TrialResult::hesitation_share() const {
    return static_cast<double>(n_hesitations) / static_cast<double>(std::max<size_t>(1, n_steps));
}

size_t count_readings(std::span<const Options> sets) {
    return readings_of(sets).size();
}

std::vector<TrialResult> run_trial(ForwardPass & pass, std::span<const TrialExample> examples,
                                   std::span<const Options> sets, Metric metric, const OnTrialProgress & on_progress,
                                   const std::vector<llama_token> & negative_prompt) {
    std::vector<TrialResult> trial;
    for (const Options & options : sets) trial.push_back({options, std::vector<double>(examples.size()), 0, 0});
    const std::vector<Reading> readings = readings_of(sets);
    size_t n_total = 0;
    for (const TrialExample & example : examples) n_total += example.continuations.size() * readings.size();
    size_t n_done = 0;
    BatchScorer scorer(pass);
    for (const Reading & reading : readings) {
        struct Place {
            size_t example, continuation;
        };
        std::map<size_t, Place> places;                                   // [request]
        std::map<size_t, std::vector<std::vector<ScoreResult>>> growing;  // [example][member][continuation]
        std::map<size_t, size_t> n_missing;                               // [example]
        for (size_t e = 0; e < examples.size(); ++e) {
            for (size_t c = 0; c < examples[e].continuations.size(); ++c) {
                std::vector<llama_token> tokens = examples[e].context;
                const auto & continuation = examples[e].continuations[c];
                tokens.insert(tokens.end(), continuation.begin(), continuation.end());
                places[scorer.submit(
                    {.tokens = std::move(tokens),
                     .n_context = examples[e].context.size(),
                     .options = reading.options,
                     .mask_family = static_cast<uint32_t>(e),
                     .negative_prompt = negative_prompt_for(reading.options.front(), negative_prompt)})] = {e, c};
            }
            n_missing[e] = examples[e].continuations.size();
        }
        const auto take = [&](size_t request, std::span<const ScoreResult> results) {
            const auto [e, c] = places[request];
            auto & all = growing[e];
            all.resize(results.size(), std::vector<ScoreResult>(examples[e].continuations.size()));
            for (size_t k = 0; k < results.size(); ++k) all[k][c] = results[k];
            ++n_done;
            if (--n_missing[e] > 0) return;
            for (size_t k = 0; k < results.size(); ++k) {
                TrialResult & of_set = trial[reading.members[k]];
                of_set.values[e] = value_of(examples[e], all[k], metric);
                for (const ScoreResult & result : all[k]) {
                    of_set.n_steps += result.tokens.size();
                    of_set.n_hesitations +=
                        static_cast<size_t>(std::count_if(result.tokens.begin(), result.tokens.end(),
                                                          [](const TokenScore & t) { return t.record.hesitated; }));
                }
            }
            growing.erase(e);
        };
        while (!scorer.is_idle()) {
            scorer.step(take);
            if (on_progress && !on_progress(n_done, n_total)) return {};
        }
    }
    return trial;
}

}  // namespace harp::decoding
