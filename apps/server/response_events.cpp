#include "server/response_events.h"

#include <algorithm>
#include <ctime>

#include "server/fields.h"

namespace harp::server {

namespace {

void add_missing(common_json & object, const std::string & name, const common_json & value) {
    if (!object.contains(name)) object[name] = value;
}

/// A response has its functions in the tools themselves.
common_json tools_of(const common_json & request) {
    common_json tools = common_json::array();
    if (!request.contains("tools") || !request.at("tools").is_array()) return tools;
    for (const common_json & tool : request.at("tools")) {
        common_json function = tool.at("function");
        function["type"] = "function";
        add_missing(function, "parameters", nullptr);
        tools.push_back(function);
    }
    return tools;
}

}  // namespace

void ResponseEvents::begin(const common_json & request, const std::string & model) {
    const auto given = [&](const std::string & name, const common_json & fallback) {
        return is_given(request, name) ? request.at(name) : fallback;
    };
    members_ = {{"created_at", std::time(nullptr)},
                {"model", model},
                {"output", common_json::array()},
                {"error", nullptr},
                {"incomplete_details", nullptr},
                {"parallel_tool_calls", given("parallel_tool_calls", true)},
                {"tool_choice", given("tool_choice", "auto")},
                {"tools", tools_of(request)}};
}

size_t ResponseEvents::index_of(const std::string & item) {
    const auto found = std::find(items_.begin(), items_.end(), item);
    const auto index = static_cast<size_t>(found - items_.begin());
    if (found == items_.end()) items_.push_back(item);
    return index;
}

void ResponseEvents::complete(common_json & events) {
    common_json all = common_json::array();
    for (common_json & event : events) {
        common_json & data = event.at("data");
        if (data.at("type") == "response.output_item.done" && data.at("item").at("type") == "function_call") {
            const common_json & call = data.at("item");
            common_json whole = {{"type", "response.function_call_arguments.done"},
                                 {"item_id", call.at("id")},
                                 {"name", call.at("name")},
                                 {"arguments", call.at("arguments")}};
            complete_data(whole);
            all.push_back({{"event", whole.at("type")}, {"data", whole}});
        }
        complete_data(data);
        all.push_back(event);
    }
    events = all;
}

void ResponseEvents::complete_data(common_json & data) {
    const auto type = data.at("type").get<std::string>();
    data["sequence_number"] = n_events_++;
    if (data.contains("response")) complete_response(data.at("response"));
    if (data.contains("item")) data["output_index"] = index_of(data.at("item").at("id").get<std::string>());
    if (!data.contains("item_id")) return;
    data["output_index"] = index_of(data.at("item_id").get<std::string>());
    if (!type.starts_with("response.function_call")) data["content_index"] = 0;
    if (type.starts_with("response.output_text")) data["logprobs"] = common_json::array();
    if (data.contains("part")) add_missing(data.at("part"), "annotations", common_json::array());
}

void ResponseEvents::complete_response(common_json & response) const {
    for (const auto & [name, value] : members_.items()) add_missing(response, name, value);
    if (!response.contains("usage")) return;
    common_json & usage = response.at("usage");
    add_missing(usage.at("input_tokens_details"), "cache_write_tokens", 0);
    add_missing(usage, "output_tokens_details", {{"reasoning_tokens", 0}});  // they are not counted apart
}

}  // namespace harp::server
