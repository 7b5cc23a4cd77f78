#include "fields.h"

#include <fmt/format.h>

#include <cmath>
#include <stdexcept>
#include <string_view>

#include "error_text.h"
#include "sampling.h"

namespace harp::server {

namespace {

std::string range(int64_t least, int64_t most) {
    return fmt::format("{}..{}", least, most);
}

llama_token token_of(const llama_vocab & vocab, const common_json & id) {
    return static_cast<llama_token>(whole_number(id, 0, llama_vocab_n_tokens(&vocab) - 1));
}

/// "17", as JSON has it where tokens are keys
bool is_digits(const std::string & text) {
    const size_t sign = text.starts_with('-') ? 1 : 0;
    return text.size() > sign && text.find_first_not_of("0123456789", sign) == std::string::npos;
}

float bias_of(const common_json & value) {
    if (value == false) return -std::numeric_limits<float>::infinity();
    if (!value.is_number()) refuse_value(value, "a number, false");
    return static_cast<float>(real_number(value));
}

}  // namespace

std::string shown(const common_json & value) {
    return shortened(value.dump());
}

void refuse_value(const common_json & value, const std::string & allowed) {
    throw std::invalid_argument(shown(value) + "; allowed: " + allowed);
}

void refuse_field(const std::string & name, const common_json & value, std::string_view allowed) {
    throw std::invalid_argument(fmt::format("{}: {}; allowed: {}", name, shown(value), allowed));
}

bool is_given(const common_json & body, const std::string & name) {
    return body.contains(name) && !body.at(name).is_null();
}

int64_t whole_number(const common_json & value, int64_t least, int64_t most) {
    const double number = value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
    if (std::trunc(number) != number) refuse_value(value, "whole numbers, " + range(least, most));
    // as double, since nothing smaller holds every number that JSON can have
    if (number < static_cast<double>(least) || number > static_cast<double>(most))
        refuse_value(value, range(least, most));
    if (number >= static_cast<double>(std::numeric_limits<int64_t>::max())) return most;
    return value.get<int64_t>();
}

double real_number(const common_json & value) {
    if (!value.is_number()) refuse_value(value, "numbers");
    const auto number = value.get<double>();
    constexpr double most = std::numeric_limits<float>::max();
    if (!(std::abs(number) <= most)) refuse_value(value, fmt::format("{0:.6g}..{1:.6g}", -most, most));
    return number;
}

uint32_t seed_of(const common_json & value) {
    const int64_t seed = whole_number(value, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max());
    const auto bits = static_cast<uint64_t>(seed);
    const bool fits = seed >= std::numeric_limits<int32_t>::min() && seed <= std::numeric_limits<uint32_t>::max();
    const auto folded = static_cast<uint32_t>(fits ? bits : bits ^ bits >> 32);
    return !fits && folded == LLAMA_DEFAULT_SEED ? 0 : folded;  // the default is a random seed
}

std::vector<std::string> texts_of(const common_json & value) {
    const auto refuse = [&] { refuse_value(value, "a text, a list of texts"); };
    if (!value.is_string() && !value.is_array()) refuse();
    std::vector<std::string> texts;
    const common_json list = value.is_string() ? common_json::array({value}) : value;
    for (const common_json & text : list) {
        if (text.is_null()) continue;
        if (!text.is_string()) refuse();
        if (text != "") texts.push_back(text.get<std::string>());
    }
    return texts;
}

std::vector<llama_logit_bias> logit_bias_of(const llama_vocab & vocab, const common_json & value) {
    std::vector<llama_logit_bias> biases;
    const auto add_text = [&](const std::string & text, float bias) {
        for (const llama_token token : common_tokenize(&vocab, text, /*add_special=*/false))
            biases.push_back({token, bias});
    };
    if (value.is_object()) {
        for (const auto & [name, bias] : value.items()) {
            if (!is_digits(name)) {
                add_text(name, bias_of(bias));
            } else {
                biases.push_back({token_of(vocab, common_json::parse_no_throw(name)), bias_of(bias)});
            }
        }
    } else if (value.is_array()) {
        for (const common_json & pair : value) {
            if (!pair.is_array() || pair.size() != 2) refuse_value(pair, "pairs [TOKEN, BIAS]");
            if (pair.at(0).is_string()) {
                add_text(pair.at(0).get<std::string>(), bias_of(pair.at(1)));
            } else {
                biases.push_back({token_of(vocab, pair.at(0)), bias_of(pair.at(1))});
            }
        }
    } else {
        refuse_value(value, "{TOKEN: BIAS, ...}, [[TOKEN, BIAS], ...]");
    }
    return biases;
}

std::vector<llama_token> tokens_of(const common_json & value) {
    if (!value.is_array()) refuse_value(value, "a list of tokens");
    std::vector<llama_token> tokens;
    for (const common_json & token : value) tokens.push_back(value_as("token", token, llama_token{}));
    return tokens;
}

std::vector<common_sampler_type> samplers_of(const common_json & value) {
    const auto refuse = [&](const common_json & unknown) {
        refuse_value(unknown,
                     "lists of penalties, dry, top_n_sigma, top_k, typ_p, top_p, min_p, xtc, temperature, "
                     "infill, adaptive_p, or a text of their letters");
    };
    std::vector<common_sampler_type> samplers;
    const auto add = [&](const std::vector<common_sampler_type> & known, const common_json & name) {
        if (known.size() != 1) refuse(name);
        samplers.push_back(known.front());
    };
    if (value.is_string()) {
        for (const char letter : value.get<std::string>())
            add(common_sampler_types_from_chars({letter}), std::string{letter});
    } else if (value.is_array()) {
        for (const common_json & name : value) {
            if (!name.is_string()) refuse(name);
            add(common_sampler_types_from_names({name.get<std::string>()}), name);
        }
    } else {
        refuse(value);
    }
    return samplers;
}

void check_texts_and_tokens(const std::string & name, const llama_vocab & vocab, const common_json & value) {
    try {
        if (!value.is_string() && !value.is_array()) refuse_value(value, "a text, a list of texts and tokens");
        if (value.is_string()) return;
        for (const common_json & part : value) {
            if (!part.is_string()) (void)token_of(vocab, part);
        }
    } catch (const std::exception & error) {
        throw std::invalid_argument(name + ": " + error.what());
    }
}

int32_t slot_of(const common_json & body, int32_t n_slots) {
    if (!is_given(body, "id_slot")) return -1;
    try {
        return static_cast<int32_t>(whole_number(body.at("id_slot"), -1, n_slots - 1));
    } catch (const std::exception & error) {
        throw std::invalid_argument(std::string("id_slot: ") + error.what());
    }
}

int32_t adapter_of(const common_json & entry, size_t n_adapters) {
    try {
        if (!entry.is_object()) refuse_value(entry, "objects with 'id' and 'scale'");
        if (n_adapters == 0) refuse_value(entry, "none, since the server has no adapters (--lora)");
        const common_json id = is_given(entry, "id") ? entry.at("id") : common_json();
        return static_cast<int32_t>(whole_number(id, 0, static_cast<int64_t>(n_adapters) - 1));
    } catch (const std::exception & error) {
        throw std::invalid_argument(std::string("adapter: ") + error.what());
    }
}

}  // namespace harp::server
