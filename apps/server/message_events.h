// What Anthropic's clients expect of a message (/v1/messages), and llama.cpp's answers have not: blocks of a stream one after another,
// with all their members, and errors that say so.
//
// patches/server-whole-streams.patch and server-messages-errors.patch call this.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "json.h"

namespace harp::server {

/// The events of one streamed message so far.
class MessageEvents {
  public:
    /// Ends each block of [{"event", "data"}] before the next one begins, and gives blocks the members that their types require:
    /// "input" of a call, "signature" of thoughts.
    void complete(common_json & events);

  private:
    std::optional<int64_t> open_;  // index of the block that has begun and not ended
    bool is_thinking_ = false;

    void end_block(common_json & events);
};

/// The body of an error as Anthropic's API has it: {"type": "error", "error": {...}}. What is no such body stays as it is.
[[nodiscard]] std::string as_error_of_message(const std::string & body);

}  // namespace harp::server
