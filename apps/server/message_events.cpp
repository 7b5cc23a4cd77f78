#include "server/message_events.h"

namespace harp::server {

namespace {

common_json event_of(const common_json & data) {
    return {{"event", data.at("type")}, {"data", data}};
}

void add_missing_members(common_json & block) {
    if (block.at("type") == "tool_use" && !block.contains("input")) block["input"] = common_json::object();
    if (block.at("type") == "thinking" && !block.contains("signature")) block["signature"] = "";
}

}  // namespace

void MessageEvents::end_block(common_json & events) {
    if (is_thinking_) {  // of a local model there is none, but clients wait for one
        events.push_back(event_of({{"type", "content_block_delta"},
                                   {"index", *open_},
                                   {"delta", {{"type", "signature_delta"}, {"signature", ""}}}}));
    }
    events.push_back(event_of({{"type", "content_block_stop"}, {"index", *open_}}));
    open_.reset();
}

void MessageEvents::complete(common_json & events) {
    common_json all = common_json::array();
    for (common_json & event : events) {
        common_json & data = event.at("data");
        const auto type = data.at("type").get<std::string>();
        if (!type.starts_with("content_block_")) {
            all.push_back(event);
            continue;
        }
        const auto index = data.at("index").get<int64_t>();
        if (type == "content_block_start") {
            if (open_ == index) continue;  // the last event begins it again where text comes with the end
            if (open_) end_block(all);
            open_ = index;
            common_json & block = data.at("content_block");
            is_thinking_ = block.at("type") == "thinking";
            add_missing_members(block);
        } else if (type == "content_block_stop") {
            if (open_ == index) end_block(all);
            continue;
        } else if (data.at("delta").at("type") == "signature_delta") {
            continue;  // where the block ends
        }
        all.push_back(event);
    }
    events = all;
}

std::string as_error_of_message(const std::string & body) {
    common_json error = common_json::parse_no_throw(body);
    if (!error.is_object() || !error.contains("error") || error.contains("type")) return body;
    error["type"] = "error";
    return error.dump();
}

}  // namespace harp::server
