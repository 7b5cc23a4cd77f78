#include "server/response_events.h"

#include <algorithm>

namespace harp::server {

size_t ResponseEvents::index_of(const std::string & item) {
    const auto found = std::find(items_.begin(), items_.end(), item);
    const auto index = static_cast<size_t>(found - items_.begin());
    if (found == items_.end()) items_.push_back(item);
    return index;
}

void ResponseEvents::complete(common_json & events) {
    for (common_json & event : events) {
        common_json & data = event.at("data");
        const auto type = data.at("type").get<std::string>();
        data["sequence_number"] = n_events_++;
        if (data.contains("item")) data["output_index"] = index_of(data.at("item").at("id").get<std::string>());
        if (!data.contains("item_id")) continue;
        data["output_index"] = index_of(data.at("item_id").get<std::string>());
        if (!type.starts_with("response.function_call")) data["content_index"] = 0;
        if (type.starts_with("response.output_text")) data["logprobs"] = common_json::array();
    }
}

}  // namespace harp::server
