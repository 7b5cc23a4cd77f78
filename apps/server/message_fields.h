// Refuses what requests to /v1/messages and /v1/responses have that llama.cpp's server would leave out without a word.
//
// patches/server-lost-parts.patch calls this.
#pragma once

#include "json.h"

namespace harp::server {

/// A request to /v1/messages: messages, blocks, tools of a wrong kind.
/// @throws std::invalid_argument naming the field
void check_messages(const common_json & body);

/// A request to /v1/responses: what would be kept on the server, of which there is nothing.
/// @throws std::invalid_argument naming the field
void check_response(const common_json & body);

}  // namespace harp::server
