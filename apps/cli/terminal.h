// What a person sees: colour on a terminal and none elsewhere, text streamed in whole UTF-8 characters, progress on stderr.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "harp/forward_pass.h"

namespace harp::cli {

/// Colour in all streams from now on, or in none (--color).
void set_colours(bool shown);
/// Whether a stream shows colour: unless it was set, a terminal, and neither NO_COLOR set nor TERM=dumb.
[[nodiscard]] bool shows_colour(std::FILE * stream);
[[nodiscard]] bool is_terminal(std::FILE * stream);
/// Columns of the terminal, 80 where unknown.
[[nodiscard]] size_t terminal_width();

enum class Style { bold, dim, red, green, yellow };
/// `text` in a style where the stream shows colour, else as it is.
[[nodiscard]] std::string styled(std::FILE * stream, Style style, std::string_view text);
/// The colour of a hesitating token, by its entropy: from yellow to red.
[[nodiscard]] std::string shaded(std::string_view text, const StepRecord & record);

/// Splits off the bytes of an unfinished UTF-8 character at the end of `text`. @return the finished part
[[nodiscard]] std::string take_complete_utf8(std::string & text);
/// @return offset of the first byte that is not UTF-8, or npos
[[nodiscard]] size_t find_invalid_utf8(std::string_view text);
/// `text` with each byte that is not UTF-8 replaced by U+FFFD, so that JSON takes it.
[[nodiscard]] std::string to_valid_utf8(std::string_view text);

/// Writes to stdout and flushes. @throws Error{io} if stdout is gone or full
void write_out(std::string_view text);

/// Streams tokens to stdout, hesitating ones shaded.
class TokenPrinter {
  public:
    TokenPrinter();
    void print(std::string_view piece, const StepRecord & record);
    /// Prints what is held back and ends the line.
    void finish();

  private:
    bool colour_;
    std::string held_back_;  // start of a character whose other bytes come with later tokens
    bool at_line_start_ = true;
};

/// What is under way, on stderr, from show() to clear(): on a terminal one line, rewritten in place, ten times a second at most;
/// elsewhere a line every few seconds. It counts the seconds by itself while nothing new is shown.
class ProgressLine {
  public:
    ~ProgressLine() { clear(); }
    void show(const std::string & text);
    void clear();

  private:
    using Clock = std::chrono::steady_clock;
    void put(const std::string & text);
    void count_seconds();

    std::mutex mutex_;  // of the following
    std::condition_variable is_cleared_;
    std::string text_;           // empty: nothing is under way
    Clock::time_point said_at_;  // text_
    Clock::time_point put_at_;
    bool is_put_ = false;
    std::thread counter_;  // runs while something is under way
};

}  // namespace harp::cli
