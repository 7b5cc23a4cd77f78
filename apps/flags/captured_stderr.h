// Captures what other code prints to standard error.
#pragma once

#include <cstdio>
#include <string>

namespace harp::cli {

/// While it exists, everything written to standard error is kept. What take() has not taken is printed when it is
/// destroyed, or when the process exits before. (llama.cpp's parsers print errors in several lines, and exit after
/// --version and the like.) Only one can exist at a time.
class CapturedStderr {
  public:
    CapturedStderr();
    ~CapturedStderr();
    CapturedStderr(const CapturedStderr &) = delete;
    CapturedStderr & operator=(const CapturedStderr &) = delete;

    /// Ends the capture. @return what was written
    std::string take();

  private:
    std::FILE * file_;
    int stderr_ = -1;  // a duplicate of the descriptor
};

}  // namespace harp::cli
