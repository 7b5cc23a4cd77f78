#include "server/message_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "server/fields.h"

namespace harp::server {

namespace {

bool has_text(const common_json & body, const std::string & name) {
    return body.is_object() && body.contains(name) && body.at(name).is_string();
}

void check_type(const std::string & name, const common_json & block, std::initializer_list<std::string_view> known) {
    const bool is_known = has_text(block, "type") &&
                          std::find(known.begin(), known.end(), block.at("type").get<std::string>()) != known.end();
    if (!is_known) refuse_field(name, block, fmt::format("blocks of the types {}", fmt::join(known, ", ")));
    if (block.at("type") == "text" && !has_text(block, "text")) refuse_field(name, block, "a text in 'text'");
}

void check_result(const std::string & name, const common_json & result) {
    if (!is_given(result, "content") || result.at("content").is_string()) return;
    const common_json & content = result.at("content");
    if (!content.is_array()) refuse_field(name + ".content", content, "a text, a list of blocks");
    for (const common_json & block : content) check_type(name + ".content", block, {"text", "image"});
}

void check_message(const std::string & name, const common_json & message) {
    if (!message.is_object()) refuse_field(name, message, "an object with 'role' and 'content'");
    if (!is_given(message, "content") || !message.at("content").is_array()) return;
    for (const common_json & block : message.at("content")) {
        // thoughts that are encrypted are of another model; documents are refused later, with the reason
        check_type(name + ".content", block,
                   {"text", "image", "thinking", "redacted_thinking", "tool_use", "tool_result", "document"});
        if (block.at("type") == "tool_result") check_result(name + ".content", block);
    }
}

void check_tool(const std::string & name, const common_json & tool) {
    if (!has_text(tool, "name")) refuse_field(name, tool, "objects with 'name' and 'input_schema'");
    if (is_given(tool, "input_schema") && !tool.at("input_schema").is_object())
        refuse_field(name + ".input_schema", tool.at("input_schema"), "an object");
}

/// Calls `check` with the name and the value of each entry of a list.
template <class Check>
void for_each_in(const common_json & body, const std::string & name, Check check) {
    if (!is_given(body, name)) return;
    if (!body.at(name).is_array()) refuse_field(name, body.at(name), "a list");
    size_t i = 0;
    for (const common_json & entry : body.at(name)) check(fmt::format("{}[{}]", name, i++), entry);
}

}  // namespace

void check_messages(const common_json & body) {
    for_each_in(body, "messages", check_message);
    for_each_in(body, "tools", check_tool);
    if (is_given(body, "system") && body.at("system").is_array()) {
        for_each_in(body, "system",
                    [](const std::string & name, const common_json & block) { check_type(name, block, {"text"}); });
    }
}

void check_response(const common_json & body) {
    for (const char * name : {"conversation", "prompt"}) {
        if (is_given(body, name))
            refuse_field(name, body.at(name), "none, since nothing is kept; send all items as 'input'");
    }
    if (is_given(body, "background") && body.at("background") != false)
        refuse_field("background", body.at("background"), "false");
}

}  // namespace harp::server
