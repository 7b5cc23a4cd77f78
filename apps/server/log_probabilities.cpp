#include "log_probabilities.h"

#include <fmt/format.h>

#include <algorithm>

#include "common.h"
#include "decoding/text.h"
#include "harp/harp.h"
#include "harp/registration.h"
#include "method/entropy.h"
#include "method/ranking.h"
#include "unicode.h"

namespace harp::server {

namespace {

/// A continuation byte of UTF-8.
bool continues_character(char c) {
    return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U;
}

bool is_utf8(const std::string & text) {
    for (size_t i = 0; i < text.size();) {
        const utf8_parse_result character = common_parse_utf8_codepoint(text, i);
        if (character.status != utf8_parse_result::SUCCESS) return false;
        i += character.bytes_consumed;
    }
    return true;
}

/// A token's bytes in a form that JSON can hold: part of a character becomes "bytes:\xe2\x80", as in OpenAI's API.
std::string printable(const std::string & token) {
    if (is_utf8(token)) return token;
    std::string bytes = "bytes:";
    for (const char c : token) bytes += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    return bytes;
}

common_json candidates_json(const std::vector<Candidate> & candidates, const LegacyEntry & entry) {
    common_json object = common_json::object();
    for (const Candidate & candidate : candidates) {
        const std::string key = printable(candidate.id == entry.id ? entry.text : candidate.text);
        if (!object.contains(key)) object[key] = candidate.logprob;  // of two with the same text the more probable
    }
    return object;
}

common_json top_json(const LegacyEntry & entry) {
    common_json object = candidates_json(entry.top, entry);
    const std::string key = printable(entry.text);
    if (!entry.top.empty() && !object.contains(key)) object[key] = *entry.logprob;
    return object;
}

/// The text of each token, without the space that the vocabulary puts before a text.
std::vector<std::string> pieces_of_text(const llama_vocab & vocab, const std::vector<llama_token> & tokens) {
    return decoding::pieces_of_text(vocab, tokens, /*begins_text=*/true, /*special=*/true);
}

/// @param log_sum_exp that of the row
std::vector<Candidate> most_probable(const llama_vocab & vocab, std::span<const float> logits, double log_sum_exp,
                                     size_t n) {
    std::vector<Candidate> top;
    for (const llama_token id : method::greatest(logits, n)) {
        const auto logit = static_cast<double>(logits[static_cast<size_t>(id)]);
        top.push_back({id, common_token_to_piece(&vocab, id), logit - log_sum_exp});
    }
    return top;
}

}  // namespace

std::vector<Candidate> most_probable(const llama_vocab & vocab, std::span<const float> logits, size_t n) {
    return most_probable(vocab, logits, method::summarise_softmax(logits).log_sum_exp, n);
}

size_t count_characters(const std::string & text) {
    return text.size() - static_cast<size_t>(std::count_if(text.begin(), text.end(), continues_character));
}

std::string text_of(const llama_vocab & vocab, const std::vector<llama_token> & tokens) {
    const int32_t n_vocab = llama_vocab_n_tokens(&vocab);
    for (const llama_token token : tokens) {
        if (token < 0 || token >= n_vocab) {
            throw std::invalid_argument("tokens: " + std::to_string(token) + "; allowed: 0.." +
                                        std::to_string(n_vocab - 1));
        }
    }
    std::string text;
    for (const std::string & piece : pieces_of_text(vocab, tokens)) text += piece;
    return text;
}

common_json legacy_logprobs(const std::vector<LegacyEntry> & entries) {
    common_json tokens = common_json::array();
    common_json token_logprobs = common_json::array();
    common_json top_logprobs = common_json::array();
    common_json text_offset = common_json::array();
    common_json entropy = common_json::array();
    common_json hesitated = common_json::array();
    common_json vanilla = common_json::array();
    const common_json unknown(nullptr);
    for (const LegacyEntry & entry : entries) {
        tokens.push_back(printable(entry.text));
        const bool begins_inside = !entry.text.empty() && continues_character(entry.text.front());
        text_offset.push_back(entry.n_characters - (begins_inside && entry.n_characters > 0 ? 1 : 0));
        token_logprobs.push_back(entry.logprob ? common_json(*entry.logprob) : unknown);
        top_logprobs.push_back(entry.logprob ? top_json(entry) : unknown);
        entropy.push_back(entry.step ? common_json(entry.step->entropy) : unknown);
        hesitated.push_back(entry.step ? common_json(entry.step->hesitated) : unknown);
        vanilla.push_back(entry.vanilla && !entry.vanilla->empty() ? candidates_json(*entry.vanilla, entry) : unknown);
    }
    common_json all = {{"tokens", std::move(tokens)},
                       {"token_logprobs", std::move(token_logprobs)},
                       {"top_logprobs", std::move(top_logprobs)},
                       {"text_offset", std::move(text_offset)}};
    if (std::any_of(entries.begin(), entries.end(), [](const LegacyEntry & e) { return e.step.has_value(); })) {
        all["entropy"] = std::move(entropy);
        all["hesitated"] = std::move(hesitated);
    }
    // whether a second pass was mixed or not, so that the lists of a stream's chunks can be joined
    if (std::any_of(entries.begin(), entries.end(), [](const LegacyEntry & e) { return e.vanilla.has_value(); })) {
        all["vanilla_top_logprobs"] = std::move(vanilla);
    }
    return all;
}

PromptEcho::PromptEcho(const llama_vocab & vocab, const std::vector<llama_token> & prompt, size_t n_top)
    : n_top_(n_top) {
    const std::vector<std::string> pieces = pieces_of_text(vocab, prompt);
    size_t n_characters = 0;
    for (size_t i = 0; i < prompt.size(); ++i) {
        const bool is_added = i == 0 && llama_vocab_get_add_bos(&vocab) && prompt[i] == llama_vocab_bos(&vocab);
        LegacyEntry entry;
        entry.id = prompt[i];
        entry.text = pieces[i];
        entry.n_characters = n_characters;
        if (!is_added) {
            text_ += entry.text;
            n_characters += count_characters(entry.text);
        }
        entries_.push_back(std::move(entry));
    }
}

std::optional<StepRecord> PromptEcho::add_row(llama_context * context, int32_t row) {
    if (++n_rows_ >= entries_.size()) return std::nullopt;
    const llama_vocab & vocab = *llama_model_get_vocab(llama_get_model(context));
    const std::span<const float> logits{harp_get_logits_ith(context, row),
                                        static_cast<size_t>(llama_vocab_n_tokens(&vocab))};
    const double log_sum_exp = method::summarise_softmax(logits).log_sum_exp;
    LegacyEntry & entry = entries_[n_rows_];
    entry.logprob = static_cast<double>(logits[static_cast<size_t>(entry.id)]) - log_sum_exp;
    entry.top = most_probable(vocab, logits, log_sum_exp, n_top_);
    ForwardPass * pass = find_pass(context);
    if (pass != nullptr && pass->enabled()) entry.step = pass->step(row);
    return entry.step;
}

}  // namespace harp::server
