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

/// The texts "name" of {"name"} or {"function": {"name"}}
std::string name_of(const common_json & function) {
    const common_json & named = function.contains("function") ? function.at("function") : function;
    return named.contains("name") && named.at("name").is_string() ? named.at("name").get<std::string>() : "";
}

/// {"type": "function", "function": {"name": "x"}}: x must be called
void choose_tool(common_json & body) {
    const common_json choice = body.at("tool_choice");
    const std::string name = name_of(choice);
    std::string known;
    if (body.contains("tools") && body.at("tools").is_array()) {
        const common_json tools = body.at("tools");
        for (const common_json & tool : tools) {
            if (!name.empty() && name_of(tool) == name) {
                body["tools"] = common_json::array({tool});
                body["tool_choice"] = "required";
                return;
            }
            known += ", " + common_json(name_of(tool)).dump();
        }
    }
    throw std::invalid_argument("tool_choice: " + shown(choice) +
                                "; allowed: \"auto\", \"none\", \"required\", or a function of 'tools'" +
                                (known.empty() ? ", of which there are none" : ": " + known.substr(2)));
}

bool is_given(const common_json & body, const std::string & name) {
    return body.contains(name) && !body.at(name).is_null();
}

/// The rest of a tool is checked where it is parsed.
void check_parameters_of_tools(const common_json & body) {
    if (!is_given(body, "tools") || !body.at("tools").is_array()) return;
    for (const common_json & tool : body.at("tools")) {
        if (!tool.is_object() || !is_given(tool, "function") || !tool.at("function").is_object()) continue;
        const common_json & function = tool.at("function");
        if (is_given(function, "parameters") && !function.at("parameters").is_object())
            throw std::invalid_argument("tools: " + shown(tool) + "; allowed: an object as 'parameters'");
    }
}

/// Earlier answers as clients send them back, with null for what they have not; a refusal is text.
common_json plain_message(common_json message) {
    if (!message.is_object()) return message;
    for (const char * name : {"name", "reasoning_content", "tool_call_id"}) {
        if (!is_given(message, name)) message.erase(name);
    }
    if (!message.contains("content") || !message.at("content").is_array()) return message;
    common_json parts = common_json::array();
    for (const common_json & part : message.at("content")) {
        const bool is_refusal =
            part.is_object() && part.contains("type") && part.at("type") == "refusal" && is_given(part, "refusal");
        parts.push_back(is_refusal ? common_json{{"type", "text"}, {"text", part.at("refusal")}} : part);
    }
    message["content"] = parts;
    return message;
}

}  // namespace

std::string shown(const common_json & value) {
    return shortened(value.dump());
}

void refuse_value(const common_json & value, const std::string & allowed) {
    throw std::invalid_argument(shown(value) + "; allowed: " + allowed);
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

void check_response_format(const std::string & name, const common_json & format) {
    const auto refuse = [&] {
        throw std::invalid_argument(name + ": " + shown(format) +
                                    "; allowed: {\"type\": \"text\"}, {\"type\": \"json_object\"}, "
                                    "{\"type\": \"json_schema\", \"json_schema\": {\"schema\": {...}}}");
    };
    const auto check_object = [&](const common_json & parent, const std::string & member) {
        if (is_given(parent, member) && !parent.at(member).is_object()) refuse();
    };
    if (!format.is_object()) refuse();
    if (format.empty()) return;
    const std::string type =
        is_given(format, "type") && format.at("type").is_string() ? format.at("type").get<std::string>() : "";
    if (type != "text" && type != "json_object" && type != "json_schema") refuse();
    check_object(format, "schema");
    check_object(format, "json_schema");
    if (is_given(format, "json_schema")) check_object(format.at("json_schema"), "schema");
}

void check_completion(const common_json & body) {
    if (is_given(body, "suffix") && body.at("suffix") != "")
        throw std::invalid_argument("suffix: " + shown(body.at("suffix")) +
                                    "; allowed: none (/infill has 'input_suffix')");
    const common_json text = {{"type", "text"}};
    if (is_given(body, "response_format") && !body.at("response_format").empty() && body.at("response_format") != text)
        throw std::invalid_argument("response_format: " + shown(body.at("response_format")) +
                                    "; allowed: in chats (here: 'json_schema')");
    if (!is_given(body, "best_of")) return;
    const common_json n = is_given(body, "n") ? body.at("n") : common_json(1);
    if (body.at("best_of") != n)
        throw std::invalid_argument("best_of: " + shown(body.at("best_of")) + "; allowed: the value of 'n', " +
                                    shown(n));
}

void check_chat(common_json & body) {
    if (is_given(body, "messages") && body.at("messages").is_array()) {
        common_json messages = common_json::array();
        for (const common_json & message : body.at("messages")) messages.push_back(plain_message(message));
        body["messages"] = messages;
    }
    for (const char * name : {"functions", "function_call", "audio"}) {
        if (!is_given(body, name) || body.at(name).empty() || body.at(name) == "none" || body.at(name) == "auto")
            continue;
        const std::string instead =
            name == std::string_view("audio") ? "only texts are answered" : "'tools' and 'tool_choice' stand for it";
        throw std::invalid_argument(name + (": " + shown(body.at(name))) + " is not supported: " + instead);
    }
    if (is_given(body, "modalities") && body.at("modalities") != common_json::array({"text"}))
        throw std::invalid_argument("modalities: " + shown(body.at("modalities")) + "; allowed: [\"text\"]");
    if (is_given(body, "response_format")) check_response_format("response_format", body.at("response_format"));
    if (is_given(body, "continue_final_message")) {
        const common_json & which = body.at("continue_final_message");
        if (!which.is_boolean() && which != "content" && which != "reasoning_content")
            throw std::invalid_argument("continue_final_message: " + shown(which) +
                                        "; allowed: true, false, \"content\", \"reasoning_content\"");
    }
    check_parameters_of_tools(body);
    if (!is_given(body, "tool_choice")) return;
    const common_json & choice = body.at("tool_choice");
    const bool has_tools = is_given(body, "tools") && !body.at("tools").empty();
    if (choice == "auto" || choice == "none" || (choice == "required" && has_tools)) return;
    choose_tool(body);
}

void set_response_format(common_json & chat, const common_json & messages_body) {
    common_json format;
    if (is_given(messages_body, "output_format")) format = messages_body.at("output_format");
    if (is_given(messages_body, "output_config")) {
        const common_json & config = messages_body.at("output_config");
        if (!config.is_object())
            throw std::invalid_argument("output_config: " + shown(config) + "; allowed: an object");
        if (is_given(config, "format")) format = config.at("format");
    }
    if (format.is_null()) return;
    if (!format.is_object() || !format.contains("type") || format.at("type") != "json_schema" ||
        !format.contains("schema") || !format.at("schema").is_object()) {
        throw std::invalid_argument("format: " + shown(format) +
                                    "; allowed: {\"type\": \"json_schema\", \"schema\": {...}}");
    }
    chat["response_format"] = {{"type", "json_schema"}, {"json_schema", {{"schema", format.at("schema")}}}};
}

void check_template_has_tools(const std::map<std::string, bool> & capabilities) {
    if (capabilities.at("supports_tools") || capabilities.at("supports_tool_calls")) return;
    throw std::invalid_argument(
        "tool_choice: a tool cannot be required, since the chat template of this model has no tools; allowed: "
        "\"auto\", "
        "\"none\"");
}

}  // namespace harp::server
