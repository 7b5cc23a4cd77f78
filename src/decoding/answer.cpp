#include "decoding/answer.h"

#include <algorithm>
#include <utility>

#include "common.h"
#include "sampling.h"

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

void check_prompt(const ForwardPass & pass, const std::vector<llama_token> & prompt) {
    if (prompt.empty()) throw Error(ErrorCode::invalid_input, "the prompt is empty");
    if (prompt.size() >= pass.n_ctx_seq()) {
        throw Error(ErrorCode::invalid_input, "the prompt has " + std::to_string(prompt.size()) +
                                                  " tokens and the context room for " +
                                                  std::to_string(pass.n_ctx_seq()) +
                                                  " with the answer; shorten it or raise the context size (-c)");
    }
}

void accept_prompt(common_sampler & sampler, const std::vector<llama_token> & prompt) {
    common_sampler_reset(&sampler);
    for (const llama_token token : prompt) common_sampler_accept(&sampler, token, /*is_generated=*/false);
}

Answer::Answer(ForwardPass & pass, common_sampler & sampler, GenerationLimits limits)
    : sampler_(&sampler), vocab_(llama_model_get_vocab(llama_get_model(pass.context()))), limits_(std::move(limits)) {}

std::optional<StopReason> Answer::stop_reason() const {
    if (has_stop_string_) return StopReason::stop_string;
    if (limits_.n_predict >= 0 && result_.n_generated >= limits_.n_predict) return StopReason::length;
    return std::nullopt;
}

std::optional<GeneratedToken> Answer::draw(ForwardPass & pass, int32_t row, llama_pos position) {
    GeneratedToken token;
    token.id = common_sampler_sample(sampler_, pass.context(), row);
    token.position = position;
    token.record = pass.step(row);
    ++result_.n_steps;
    result_.n_hesitations += token.record.hesitated ? 1 : 0;
    common_sampler_accept(sampler_, token.id, /*is_generated=*/true);
    if (llama_vocab_is_eog(vocab_, token.id)) return std::nullopt;

    token.piece = common_token_to_piece(vocab_, token.id, /*special=*/false);
    result_.text += token.piece;
    has_stop_string_ = ends_within(result_.text, token.piece.size(), limits_.stop_strings);
    ++result_.n_generated;
    return token;
}

}  // namespace harp::decoding
