// What requests for completions and chats ask for, as OpenAI's API has it: done, or refused with the reason.
//
// patches/server-wrong-values.patch and others call this.
#pragma once

#include <map>
#include <string>

#include "json.h"

namespace harp::server {

/// Refuses what is asked of a completion as OpenAI has it and cannot be done.
/// @throws std::invalid_argument
void check_completion(const common_json & body);

/// The same for a chat. A tool that is chosen by its name becomes the only one, and must be called. Members of messages that are null
/// are left out.
/// @throws std::invalid_argument
void check_chat(common_json & body);

/// The format of a chat's answer: {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema"}}
/// @throws std::invalid_argument naming the field
void check_response_format(const std::string & name, const common_json & format);

/// Gives a chat the JSON schema that a request to /v1/messages has: `output_config.format`, or `output_format`.
/// @throws std::invalid_argument
void set_response_format(common_json & chat, const common_json & messages_body);

/// A tool must be called: can it be, with this chat template?
/// @param capabilities llama.cpp's, such as {"supports_tools", true}
/// @throws std::invalid_argument
void check_template_has_tools(const std::map<std::string, bool> & capabilities);

}  // namespace harp::server
