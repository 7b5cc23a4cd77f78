#include "log_probabilities.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "common.h"
#include "harp/harp.h"
#include "harp/registration.h"
#include "method/entropy.h"
#include "unicode.h"

namespace harp::server {

namespace {

/// Characters that begin in `text`: a character split between tokens counts where it begins.
size_t count_characters(const std::string & text) {
    return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
        return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U;  // no continuation byte of UTF-8
    }));
}

bool is_utf8(const std::string & text) {
    for (size_t i = 0; i < text.size();) {
        const utf8_parse_result character = common_parse_utf8_codepoint(text, i);
        if (character.status != utf8_parse_result::SUCCESS) return false;
        i += character.bytes_consumed;
    }
    return true;
}

/// A token's bytes as JSON can hold them: part of a character as OpenAI's API writes it, "bytes:\xe2\x80".
std::string printable(const std::string & token) {
    if (is_utf8(token)) return token;
    std::string bytes = "bytes:";
    for (const char c : token) bytes += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    return bytes;
}

common_json top_json(const std::vector<Candidate> & top) {
    common_json object = common_json::object();
    for (const Candidate & candidate : top) {
        const std::string key = printable(candidate.text);
        if (!object.contains(key)) object[key] = candidate.logprob;  // the more probable one of two with the same text
    }
    return object;
}

/// @param log_sum_exp of the row
std::vector<Candidate> most_probable(const llama_vocab & vocab, std::span<const float> logits, double log_sum_exp,
                                     size_t n) {
    std::vector<llama_token> ids(logits.size());
    std::iota(ids.begin(), ids.end(), 0);
    const auto end = ids.begin() + static_cast<std::ptrdiff_t>(std::min(n, ids.size()));
    std::partial_sort(ids.begin(), end, ids.end(), [&](llama_token a, llama_token b) {
        return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    std::vector<Candidate> top;
    for (auto id = ids.begin(); id != end; ++id) {
        const auto logit = static_cast<double>(logits[static_cast<size_t>(*id)]);
        top.push_back({*id, common_token_to_piece(&vocab, *id), logit - log_sum_exp});
    }
    return top;
}

}  // namespace

std::vector<Candidate> most_probable(const llama_vocab & vocab, std::span<const float> logits, size_t n) {
    return most_probable(vocab, logits, method::summarise_softmax(logits).log_sum_exp, n);
}

PromptEcho::PromptEcho(const llama_vocab & vocab, const std::vector<llama_token> & prompt, size_t n_top)
    : prompt_(prompt), n_top_(n_top) {
    for (size_t i = 0; i < prompt.size(); ++i) {
        const bool is_added = i == 0 && llama_vocab_get_add_bos(&vocab) && prompt[i] == llama_vocab_bos(&vocab);
        const std::string token = common_token_to_piece(&vocab, prompt[i]);
        const std::string shown = is_added ? "" : token;
        append(token, shown);
        text_ += shown;
    }
}

PromptEcho::Entry & PromptEcho::append(const std::string & token, const std::string & shown) {
    Entry entry;
    entry.token = token;
    entry.text_offset = text_end_;
    text_end_ += count_characters(shown);
    entries_.push_back(std::move(entry));
    return entries_.back();
}

std::optional<StepRecord> PromptEcho::add_row(llama_context * context, int32_t row) {
    if (++n_rows_ >= prompt_.size()) return std::nullopt;
    const llama_vocab & vocab = *llama_model_get_vocab(llama_get_model(context));
    const std::span<const float> logits{harp_get_logits_ith(context, row),
                                        static_cast<size_t>(llama_vocab_n_tokens(&vocab))};
    const double log_sum_exp = method::summarise_softmax(logits).log_sum_exp;
    const llama_token token = prompt_[n_rows_];
    Entry & entry = entries_[n_rows_];
    entry.logprob = static_cast<double>(logits[static_cast<size_t>(token)]) - log_sum_exp;
    entry.top = most_probable(vocab, logits, log_sum_exp, n_top_);
    const bool is_among =
        std::any_of(entry.top.begin(), entry.top.end(), [&](const Candidate & c) { return c.id == token; });
    if (!is_among) entry.top.push_back({token, entry.token, *entry.logprob});
    ForwardPass * pass = find_pass(context);
    if (pass != nullptr && pass->enabled()) entry.step = pass->step(row);
    return entry.step;
}

void PromptEcho::add_generated(const std::string & text, double logprob, const std::vector<Candidate> & top,
                               const std::optional<StepRecord> & step) {
    Entry & entry = append(text, text);
    entry.logprob = logprob;
    entry.top = top;
    entry.step = step;
}

common_json PromptEcho::logprobs() const {
    common_json tokens = common_json::array();
    common_json token_logprobs = common_json::array();
    common_json top_logprobs = common_json::array();
    common_json text_offset = common_json::array();
    common_json entropy = common_json::array();
    common_json hesitated = common_json::array();
    const common_json unknown(nullptr);
    for (const Entry & entry : entries_) {
        tokens.push_back(printable(entry.token));
        text_offset.push_back(entry.text_offset);
        token_logprobs.push_back(entry.logprob ? common_json(*entry.logprob) : unknown);
        top_logprobs.push_back(entry.logprob ? top_json(entry.top) : unknown);
        entropy.push_back(entry.step ? common_json(entry.step->entropy) : unknown);
        hesitated.push_back(entry.step ? common_json(entry.step->hesitated) : unknown);
    }
    common_json all = {{"tokens", std::move(tokens)},
                       {"token_logprobs", std::move(token_logprobs)},
                       {"top_logprobs", std::move(top_logprobs)},
                       {"text_offset", std::move(text_offset)}};
    const bool has_steps =
        std::any_of(entries_.begin(), entries_.end(), [](const Entry & e) { return e.step.has_value(); });
    if (has_steps) {
        all["entropy"] = std::move(entropy);
        all["hesitated"] = std::move(hesitated);
    }
    return all;
}

}  // namespace harp::server
