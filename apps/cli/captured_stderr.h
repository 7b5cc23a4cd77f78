// Keeps what code that prints for itself writes to standard error.
#pragma once

#include <cstdio>
#include <string>

namespace harp::cli {

/// While it lives, what is written to standard error is kept; what nobody took is written at its end, or when the process
/// exits first. (llama.cpp's parsers print their errors, in several lines, and exit after --version and the like.)
/// One at a time.
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
