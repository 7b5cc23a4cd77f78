#include "decoding/score.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "decoding/batch_score.h"

namespace harp::decoding {

namespace {

Mean mean_of(const std::vector<TokenScore> & scores, double (*value)(const TokenScore &)) {
    const auto n = static_cast<double>(scores.size());
    double sum = 0;
    for (const TokenScore & score : scores) sum += value(score);
    const double mean = sum / n;
    double squares = 0;
    for (const TokenScore & score : scores) squares += (value(score) - mean) * (value(score) - mean);
    return {mean, n > 1 ? std::sqrt(squares / (n - 1) / n) : std::numeric_limits<double>::quiet_NaN()};
}

/// The windows of a text, each beginning with the beginning-of-sequence token if the model uses one.
std::vector<std::vector<llama_token>> windows_of(const ForwardPass & pass, const llama_vocab & vocab,
                                                 const std::vector<llama_token> & tokens, size_t window) {
    if (tokens.size() < 2)
        throw Error(ErrorCode::invalid_input, "there is nothing to score: the text has fewer than two tokens");
    if (window < 2 || window > pass.n_ctx_seq()) {
        throw Error(ErrorCode::invalid_input, "a window of " + std::to_string(window) + " tokens; allowed: 2.." +
                                                  std::to_string(pass.n_ctx_seq()));
    }
    std::vector<std::vector<llama_token>> windows;
    for (size_t begin = 0; begin < tokens.size();) {
        std::vector<llama_token> text;
        if (begin > 0 && llama_vocab_get_add_bos(&vocab)) text.push_back(llama_vocab_bos(&vocab));
        const size_t n = std::min(tokens.size() - begin, window - text.size());
        const auto first = tokens.begin() + static_cast<std::ptrdiff_t>(begin);
        text.insert(text.end(), first, first + static_cast<std::ptrdiff_t>(n));
        if (text.size() > 1) windows.push_back(std::move(text));  // a single token has no context
        begin += n;
    }
    return windows;
}

}  // namespace

size_t output_rows_per_batch(const ForwardPass & pass) {
    constexpr size_t logits_bytes = size_t{64} << 20;
    const size_t rows = logits_bytes / (static_cast<size_t>(pass.n_vocab()) * sizeof(float));
    return std::clamp<size_t>(rows, 1, pass.n_batch());
}

std::vector<TokenScore> score(ForwardPass & pass, const std::vector<llama_token> & tokens, size_t window,
                              const OnScoreProgress & on_progress, const std::vector<llama_token> & negative_prompt) {
    return score_each(pass, tokens, window, {}, on_progress, negative_prompt).front();
}

std::vector<std::vector<TokenScore>> score_each(ForwardPass & pass, const std::vector<llama_token> & tokens,
                                                size_t window, const std::vector<Options> & options,
                                                const OnScoreProgress & on_progress,
                                                const std::vector<llama_token> & negative_prompt) {
    const llama_vocab & vocab = *llama_model_get_vocab(llama_get_model(pass.context()));
    BatchScorer scorer(pass);
    size_t n_rows = 0;
    for (auto & text : windows_of(pass, vocab, tokens, window)) {
        n_rows += text.size() - 1;
        scorer.submit(
            {.tokens = std::move(text), .n_context = 1, .options = options, .negative_prompt = negative_prompt});
    }
    std::map<size_t, std::vector<ScoreResult>> windows;
    while (!scorer.is_idle()) {
        try {
            scorer.step([&](size_t request, std::span<const ScoreResult> results) {
                windows[request] = {results.begin(), results.end()};
            });
        } catch (const Error & error) {
            // the abort callback ends a batch of the next windows; those before it are complete
            const bool is_stopped = error.code() == ErrorCode::aborted && on_progress && !windows.empty() &&
                                    !on_progress(scorer.n_decoded(), n_rows);
            if (!is_stopped) throw;
            break;
        }
        if (on_progress && !on_progress(scorer.n_decoded(), n_rows)) break;
    }
    std::vector<std::vector<TokenScore>> scores(std::max<size_t>(1, options.size()));
    for (const auto & [request, results] : windows) {
        for (size_t i = 0; i < scores.size(); ++i)
            scores[i].insert(scores[i].end(), results[i].tokens.begin(), results[i].tokens.end());
    }
    return scores;
}

ScoreSummary summarise(const std::vector<TokenScore> & scores) {
    ScoreSummary summary;
    summary.n_tokens = scores.size();
    if (scores.empty()) return summary;
    for (const TokenScore & score : scores) summary.n_hesitations += score.record.hesitated ? 1 : 0;
    summary.vanilla = mean_of(scores, [](const TokenScore & s) { return -s.vanilla; });
    summary.harp = mean_of(scores, [](const TokenScore & s) { return -s.harp; });
    summary.difference = mean_of(scores, [](const TokenScore & s) { return s.vanilla - s.harp; });
    return summary;
}

}  // namespace harp::decoding
