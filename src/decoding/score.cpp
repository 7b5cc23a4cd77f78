#include "decoding/score.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "decoding/feed.h"
#include "method/entropy.h"
#include "method/mixing.h"

namespace harp::decoding {

namespace {

double log_probability(std::span<const float> logits, llama_token token) {
    return static_cast<double>(logits[static_cast<size_t>(token)]) - method::summarise_softmax(logits).log_sum_exp;
}

Mean mean_of(const std::vector<TokenScore> & scores, double (*value)(const TokenScore &)) {
    const auto n = static_cast<double>(scores.size());
    double sum = 0;
    for (const TokenScore & score : scores) sum += value(score);
    const double mean = sum / n;
    double squares = 0;
    for (const TokenScore & score : scores) squares += (value(score) - mean) * (value(score) - mean);
    return {mean, n > 1 ? std::sqrt(squares / (n - 1) / n) : std::numeric_limits<double>::quiet_NaN()};
}

/// A row of logits with the token that follows in the text.
using OnScoredRow = std::function<void(const StepObservation &, llama_token next)>;

/// Decodes the text in windows and shows each row that predicts one of its tokens. @throws as score()
void scan(ForwardPass & pass, const std::vector<llama_token> & tokens, size_t window, const OnScoredRow & on_row,
          const OnScoreProgress & on_progress) {
    if (tokens.size() < 2)
        throw Error(ErrorCode::invalid_input, "there is nothing to score: the text has fewer than two tokens");
    if (window < 2 || window > pass.n_ctx_seq()) {
        throw Error(ErrorCode::invalid_input, "a window of " + std::to_string(window) + " tokens; allowed: 2.." +
                                                  std::to_string(pass.n_ctx_seq()));
    }
    const llama_vocab * vocab = llama_model_get_vocab(llama_get_model(pass.context()));
    const bool adds_bos = llama_vocab_get_add_bos(vocab);
    std::vector<llama_token> text;  // of the current window
    // the observer refers to these locals: it goes however this function is left
    struct ObserverGuard {
        ForwardPass & pass;
        ~ObserverGuard() { pass.set_observer({}); }
    } const guard{pass};
    pass.set_observer([&](const StepObservation & o) { on_row(o, text[static_cast<size_t>(o.position) + 1]); });
    for (size_t begin = 0; begin < tokens.size();) {
        const bool extra_bos = adds_bos && begin > 0;
        if (!extra_bos && begin + 1 == tokens.size()) break;  // a token alone has nothing that predicts it
        const size_t n = std::min(tokens.size() - begin, window - (extra_bos ? 1 : 0));
        text.clear();
        if (extra_bos) text.push_back(llama_vocab_bos(vocab));
        text.insert(text.end(), tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                    tokens.begin() + static_cast<std::ptrdiff_t>(begin + n));
        pass.memory_clear(false);
        bool goes_on = true;
        const auto on_fed = [&](size_t n_done) {
            goes_on = !on_progress || on_progress(begin + n_done, tokens.size() - 1);
            return goes_on;
        };
        decode_feed(pass, {.tokens = std::span(text).first(text.size() - 1)}, on_fed, output_rows_per_batch(pass));
        if (!goes_on) return;
        begin += n;
    }
}

}  // namespace

size_t output_rows_per_batch(const ForwardPass & pass) {
    constexpr size_t logits_bytes = size_t{64} << 20;
    const size_t rows = logits_bytes / (static_cast<size_t>(pass.n_vocab()) * sizeof(float));
    return std::clamp<size_t>(rows, 1, pass.n_batch());
}

std::vector<TokenScore> score(ForwardPass & pass, const std::vector<llama_token> & tokens, size_t window,
                              const OnScoreProgress & on_progress) {
    std::vector<TokenScore> scores;
    const auto add = [&](const StepObservation & o, llama_token next) {
        const double vanilla = log_probability(o.vanilla, next);
        scores.push_back({vanilla, o.reframed.empty() ? vanilla : log_probability(o.mixed, next), o.record});
    };
    scan(pass, tokens, window, add, on_progress);
    return scores;
}

std::vector<std::vector<TokenScore>> score_betas(ForwardPass & pass, const std::vector<llama_token> & tokens,
                                                 size_t window, std::span<const float> betas,
                                                 const OnScoreProgress & on_progress) {
    std::vector<std::vector<TokenScore>> scores(betas.size());
    std::vector<float> mixed(static_cast<size_t>(pass.n_vocab()));
    const auto add = [&](const StepObservation & o, llama_token next) {
        const double vanilla = log_probability(o.vanilla, next);
        for (size_t i = 0; i < betas.size(); ++i) {
            double harp = vanilla;
            if (!o.reframed.empty()) {
                method::mix_logits(o.vanilla, o.reframed, betas[i], mixed);
                harp = log_probability(mixed, next);
            }
            scores[i].push_back({vanilla, harp, o.record});
        }
    };
    scan(pass, tokens, window, add, on_progress);
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
