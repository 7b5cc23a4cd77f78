// One of the models that the server has, as OpenAI's and Anthropic's clients retrieve it.
//
// patches/server-one-model.patch calls this.
#pragma once

#include <string>

#include "json.h"

namespace harp::server {

/// @param list what /v1/models answers: {"data": [{"id": "name", "aliases": ["other name"], ...}, ...]}
/// @return the entry with this id or alias, or {"error": {...}} if there is none
[[nodiscard]] common_json model_of(const common_json & list, const std::string & id);

}  // namespace harp::server
