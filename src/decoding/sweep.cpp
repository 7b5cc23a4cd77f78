#include "decoding/sweep.h"

#include <algorithm>
#include <optional>

#include "decoding/batch_score.h"
#include "decoding/feed.h"
#include "stopwatch.h"

namespace harp::decoding {

namespace {

/// For options that never change a logit: the vanilla scores, and where they would have hesitated.
SweepRow vanilla_row(const Options & options, std::vector<TokenScore> scores) {
    for (TokenScore & score : scores) score.record.hesitated = score.record.gate(options.gate) > options.threshold;
    return {options, summarise(scores), 0};
}

/// @return the scores of each member, or nullopt if stopped
std::optional<std::vector<std::vector<TokenScore>>> run(ForwardPass & pass, const std::vector<llama_token> & tokens,
                                                        size_t window, const Reading & reading,
                                                        const OnScoreProgress & on_progress,
                                                        const std::vector<llama_token> & negative_prompt) {
    bool stopped = false;
    const auto on_batch = [&](size_t done, size_t total) {
        stopped = on_progress && !on_progress(done, total);
        return !stopped;
    };
    try {
        auto scores = score_each(pass, tokens, window, reading.options, on_batch,
                                 negative_prompt_for(reading.options.front(), negative_prompt));
        if (!stopped) return scores;
    } catch (const Error & error) {
        if (error.code() != ErrorCode::aborted) throw;
    }
    return std::nullopt;
}

}  // namespace

std::vector<SweepRow> sweep(ForwardPass & pass, const std::vector<llama_token> & tokens, size_t window,
                            std::span<const Options> combinations, const std::vector<TokenScore> & vanilla,
                            const OnSweepProgress & on_progress, const std::vector<llama_token> & negative_prompt) {
    std::vector<std::optional<SweepRow>> rows(combinations.size());
    for (size_t i = 0; i < combinations.size(); ++i) {
        if (combinations[i].is_vanilla()) rows[i] = vanilla_row(combinations[i], vanilla);
    }
    const std::vector<Reading> readings = group_by_reading(combinations);
    for (size_t r = 0; r < readings.size(); ++r) {
        const Stopwatch watch;
        const auto on_batch = [&](size_t done, size_t total) {
            return !on_progress || on_progress(done, total, r, readings.size());
        };
        const auto scores = run(pass, tokens, window, readings[r], on_batch, negative_prompt);
        if (!scores) break;
        const double seconds = watch.seconds();
        for (size_t k = 0; k < scores->size(); ++k) {
            const size_t i = readings[r].members[k];
            rows[i] = SweepRow{combinations[i], summarise((*scores)[k]), seconds};
        }
    }
    std::vector<SweepRow> complete;
    for (const auto & row : rows) {
        if (row) complete.push_back(*row);
    }
    return complete;
}

}  // namespace harp::decoding
