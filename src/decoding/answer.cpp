#include "decoding/answer.h"

#include <algorithm>
#include <utility>

#include "common.h"

namespace harp::decoding {

namespace {

/// Whether one of the stop strings ends in the last `n_new` bytes of the text.
bool ends_within(const std::string & text, size_t n_new, const std::vector<std::string> & stop_strings) {
    return std::any_of(stop_strings.begin(), stop_strings.end(), [&](const std::string & stop) {
        if (stop.empty()) return false;
        const size_t looked_at = std::min(text.size(), n_new + stop.size() - 1);
        return text.find(stop, text.size() - looked_at) != std::string::npos;
    });
}

std::span<const float> logits_of(ForwardPass & pass, int32_t row) {
    return {pass.logits(row), static_cast<size_t>(pass.n_vocab())};
}

}  // namespace

const char * to_string(StopReason reason) noexcept {
    switch (reason) {
        case StopReason::end_of_text: return "end_of_text";
        case StopReason::stop_string: return "stop_string";
        case StopReason::length: return "length";
        case StopReason::context_full: return "context_full";
        case StopReason::interrupted: return "interrupted";
    }
    return "unknown";
}

Answer::Answer(ForwardPass & pass, Sampler sampler, GenerationLimits limits, bool records)
    : sampler_(std::move(sampler)),
      vocab_(llama_model_get_vocab(llama_get_model(pass.context()))),
      limits_(std::move(limits)),
      records_(records || pass.enabled()) {}

std::optional<StopReason> Answer::stop_reason() const {
    if (has_stop_string_) return StopReason::stop_string;
    if (limits_.n_predict >= 0 && result_.n_generated >= limits_.n_predict) return StopReason::length;
    return std::nullopt;
}

std::optional<GeneratedToken> Answer::sample(ForwardPass & pass, int32_t row, llama_pos position) {
    GeneratedToken token;
    token.id = sampler_.sample(logits_of(pass, row));
    token.position = position;
    if (records_) token.record = pass.step(row);
    ++result_.n_steps;
    result_.n_hesitations += token.record.hesitated ? 1 : 0;
    sampler_.accept(token.id);
    if (llama_vocab_is_eog(vocab_, token.id)) return std::nullopt;

    token.piece = common_token_to_piece(vocab_, token.id, /*special=*/false);
    result_.text += token.piece;
    has_stop_string_ = ends_within(result_.text, token.piece.size(), limits_.stop_strings);
    ++result_.n_generated;
    return token;
}

/// (A sample that a second pass may still change counts as it is; ForwardPass asks again after that pass.)
size_t Answer::count_useful_rows(ForwardPass & pass, int32_t row, std::span<const llama_token> draft) const {
    Sampler ahead = sampler_.clone();
    for (size_t i = 0; i < draft.size(); ++i) {
        const llama_token token = ahead.sample(logits_of(pass, row + static_cast<int32_t>(i)));
        if (token != draft[i]) return i + 1;
        ahead.accept(token);
    }
    return draft.size() + 1;
}

}  // namespace harp::decoding
