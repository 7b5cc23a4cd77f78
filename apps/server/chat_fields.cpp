#include "server/chat_fields.h"

#include <stdexcept>
#include <string_view>

#include "server/fields.h"

namespace harp::server {

namespace {

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
    refuse_field("tool_choice", choice,
                 "\"auto\", \"none\", \"required\", or a function of 'tools'" +
                     (known.empty() ? ", of which there are none" : ": " + known.substr(2)));
}

/// The rest of a tool is checked where it is parsed.
void check_parameters_of_tools(const common_json & body) {
    if (!is_given(body, "tools") || !body.at("tools").is_array()) return;
    for (const common_json & tool : body.at("tools")) {
        if (!tool.is_object() || !is_given(tool, "function") || !tool.at("function").is_object()) continue;
        const common_json & function = tool.at("function");
        if (is_given(function, "parameters") && !function.at("parameters").is_object())
            refuse_field("tools", tool, "an object as 'parameters'");
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

void check_response_format(const std::string & name, const common_json & format) {
    const auto refuse = [&] {
        refuse_field(name, format,
                     "{\"type\": \"text\"}, {\"type\": \"json_object\"}, "
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
        refuse_field("suffix", body.at("suffix"), "none (/infill has 'input_suffix')");
    const common_json text = {{"type", "text"}};
    if (is_given(body, "response_format") && !body.at("response_format").empty() && body.at("response_format") != text)
        refuse_field("response_format", body.at("response_format"), "in chats (here: 'json_schema')");
    if (!is_given(body, "best_of")) return;
    const common_json n = is_given(body, "n") ? body.at("n") : common_json(1);
    if (body.at("best_of") != n) refuse_field("best_of", body.at("best_of"), "the value of 'n', " + shown(n));
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
        refuse_field("modalities", body.at("modalities"), "[\"text\"]");
    if (is_given(body, "response_format")) check_response_format("response_format", body.at("response_format"));
    if (is_given(body, "continue_final_message")) {
        const common_json & which = body.at("continue_final_message");
        if (!which.is_boolean() && which != "content" && which != "reasoning_content")
            refuse_field("continue_final_message", which, "true, false, \"content\", \"reasoning_content\"");
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
        if (!config.is_object()) refuse_field("output_config", config, "an object");
        if (is_given(config, "format")) format = config.at("format");
    }
    if (format.is_null()) return;
    if (!format.is_object() || !format.contains("type") || format.at("type") != "json_schema" ||
        !format.contains("schema") || !format.at("schema").is_object()) {
        refuse_field("format", format, "{\"type\": \"json_schema\", \"schema\": {...}}");
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
