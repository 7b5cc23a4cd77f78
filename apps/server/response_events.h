// Where the text of a streamed response (/v1/responses) belongs: OpenAI's client needs indices that llama.cpp's events
// have not.
//
// patches/server-whole-responses.patch calls this.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "json.h"

namespace harp::server {

/// The events of one response so far.
class ResponseEvents {
  public:
    /// Adds "sequence_number" to each of the next events, [{"event", "data"}], and to those of an item of the output
    /// also "output_index". Parts of an item have one content, 0, and its text no log-probabilities.
    void complete(common_json & events);

  private:
    int64_t n_events_ = 0;
    std::vector<std::string> items_;  // ids, in the order in which they began

    size_t index_of(const std::string & item);
};

}  // namespace harp::server
