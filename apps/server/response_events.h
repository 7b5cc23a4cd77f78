// What OpenAI's clients expect of a response (/v1/responses), streamed or not, and llama.cpp's answers have not: where a text belongs,
// the end of a call's arguments, and members that no response is without.
//
// patches/server-whole-responses.patch calls this.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "json.h"

namespace harp::server {

/// One response and its events so far.
class ResponseEvents {
  public:
    /// Call it before the others. @param request the chat that the response's request was made into
    void begin(const common_json & request, const std::string & model);

    /// Adds "sequence_number" to each of the next events, [{"event", "data"}], and to those of an item of the output
    /// also "output_index". Parts of an item have one content, 0, and its text no log-probabilities. An event with the whole arguments
    /// goes before the end of a call.
    void complete(common_json & events);

    /// Adds what a response is never without.
    void complete_response(common_json & response) const;

  private:
    int64_t n_events_ = 0;
    std::vector<std::string> items_;  // ids, in the order in which they began
    common_json members_ = common_json::object();

    size_t index_of(const std::string & item);
    void complete_data(common_json & data);
};

}  // namespace harp::server
