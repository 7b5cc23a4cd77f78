#include "decoding/generate.h"

#include <algorithm>
#include <chrono>

#include "common.h"
#include "forward/batch_rows.h"
#include "sampling.h"

namespace harp::decoding {

namespace {

bool ends_with_any(const std::string & text, const std::vector<std::string> & endings) {
    return std::any_of(endings.begin(), endings.end(),
                       [&](const std::string & ending) { return !ending.empty() && text.ends_with(ending); });
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

Generator::Generator(ForwardPass & pass, common_sampler & sampler, llama_seq_id sequence)
    : pass_(pass), sampler_(sampler), sequence_(sequence) {}

void Generator::decode(const llama_token * tokens, size_t n, bool last_is_output) {
    forward::BatchRows rows;
    for (size_t i = 0; i < n; ++i) {
        const auto position = static_cast<llama_pos>(tokens_.size() + i);
        rows.add(tokens[i], position, {&sequence_, 1}, last_is_output && i + 1 == n);
    }
    pass_.decode(rows.view());
    tokens_.insert(tokens_.end(), tokens, tokens + n);
    logits_row_ = static_cast<int32_t>(n) - 1;
}

size_t Generator::keep_common_prefix(const std::vector<llama_token> & tokens) {
    const auto [mine, theirs] = std::mismatch(tokens_.begin(), tokens_.end(), tokens.begin(), tokens.end());
    auto n_kept = static_cast<size_t>(mine - tokens_.begin());
    n_kept = std::min(n_kept, tokens.size() - 1);  // at least one row is decoded, for its logits
    if (n_kept < tokens_.size() && !pass_.memory_seq_rm(sequence_, static_cast<llama_pos>(n_kept), -1)) {
        pass_.memory_seq_rm(sequence_, -1, -1);  // recurrent state cannot be cut
        n_kept = 0;
    }
    tokens_.resize(n_kept);
    return n_kept;
}

size_t Generator::set_prompt(const std::vector<llama_token> & tokens, const OnProgress & on_progress) {
    if (tokens.empty()) throw Error(ErrorCode::invalid_input, "the prompt is empty");
    if (tokens.size() >= pass_.n_ctx_seq()) {
        throw Error(ErrorCode::invalid_input, "the prompt has " + std::to_string(tokens.size()) +
                                                  " tokens and the context room for " +
                                                  std::to_string(pass_.n_ctx_seq()) +
                                                  " with the answer; shorten it or raise the context size (-c)");
    }
    const size_t n_kept = keep_common_prefix(tokens);
    pass_.set_prompt_end(sequence_, static_cast<llama_pos>(tokens.size()));
    common_sampler_reset(&sampler_);
    for (const llama_token token : tokens) common_sampler_accept(&sampler_, token, /*is_generated=*/false);

    const size_t total = tokens.size() - n_kept;
    for (size_t done = 0; done < total;) {
        const size_t n = std::min<size_t>(total - done, pass_.n_batch());
        decode(tokens.data() + n_kept + done, n, done + n == total);
        done += n;
        if (on_progress) on_progress(done, total);
    }
    return total;
}

GenerationResult Generator::generate(const GenerationLimits & limits, const OnToken & on_token) {
    using Clock = std::chrono::steady_clock;
    const llama_vocab * vocab = llama_model_get_vocab(llama_get_model(pass_.context()));
    GenerationResult result;
    const auto start = Clock::now();
    const auto finish = [&](StopReason reason) {
        result.reason = reason;
        result.seconds = std::chrono::duration<double>(Clock::now() - start).count();
        return result;
    };

    while (limits.n_predict < 0 || result.n_generated < limits.n_predict) {
        GeneratedToken token;
        token.id = common_sampler_sample(&sampler_, pass_.context(), logits_row_);
        token.position = static_cast<llama_pos>(tokens_.size());
        token.record = pass_.step(logits_row_);
        common_sampler_accept(&sampler_, token.id, /*is_generated=*/true);
        if (llama_vocab_is_eog(vocab, token.id)) return finish(StopReason::end_of_text);

        token.piece = common_token_to_piece(vocab, token.id, /*special=*/false);
        result.text += token.piece;
        ++result.n_generated;
        if (!on_token(token)) return finish(StopReason::interrupted);
        if (ends_with_any(result.text, limits.stop_strings)) return finish(StopReason::stop_string);
        if (result.n_generated == limits.n_predict) break;
        if (tokens_.size() + 1 >= pass_.n_ctx_seq()) return finish(StopReason::context_full);
        try {
            decode(&token.id, 1, true);
        } catch (const Error & error) {
            if (error.code() == ErrorCode::context_full) return finish(StopReason::context_full);
            if (error.code() == ErrorCode::aborted) return finish(StopReason::interrupted);
            throw;
        }
    }
    return finish(StopReason::length);
}

}  // namespace harp::decoding
