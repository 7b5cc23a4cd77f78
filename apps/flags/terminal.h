// Terminal output: colour only on a terminal, text streamed in whole UTF-8 characters, progress on standard error.
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "harp/forward_pass.h"

namespace harp::cli {

/// From now on all streams show colour, or none does (--color).
void set_colours(bool shown);
/// Whether a stream shows colour. If set_colours() was not called: a terminal does, unless NO_COLOR is set or
/// TERM=dumb.
[[nodiscard]] bool shows_colour(std::FILE * stream);
[[nodiscard]] bool is_terminal(std::FILE * stream);
/// Whether a line can be erased and written again: on a terminal, unless TERM=dumb.
[[nodiscard]] bool can_erase_lines(std::FILE * stream);
/// Columns of the terminal; 80 if unknown.
[[nodiscard]] size_t terminal_width();

enum class Style { bold, dim, red, green, yellow };
/// `text` in a style if the stream shows colour, else unchanged.
[[nodiscard]] std::string styled(std::FILE * stream, Style style, std::string_view text);
/// `text` in the colour of a hesitating token, which depends on its entropy; other tokens are unchanged.
[[nodiscard]] std::string shaded(std::string_view text, const StepRecord & record);

/// Splits off the bytes of an unfinished UTF-8 character at the end of `text`. @return the finished part
[[nodiscard]] std::string take_complete_utf8(std::string & text);
/// How many columns of a terminal a UTF-8 character takes: 1, 2 (Chinese, emoji), 0 (accents that are put on another character), or -1 if
/// it is a control character.
[[nodiscard]] int columns_of(std::string_view character);
/// @return offset of the first byte that is not UTF-8, or npos
[[nodiscard]] size_t find_invalid_utf8(std::string_view text);
/// `text` with each byte that is not UTF-8 replaced by U+FFFD, so that it can be written as JSON.
[[nodiscard]] std::string to_valid_utf8(std::string_view text);

/// Writes to standard output and flushes. @throws Error{io} if it is closed or full
void write_out(std::string_view text);
/// Writes to standard error. What cannot be written is lost: a message must not end the program.
void write_err(std::string_view text) noexcept;
template <typename... Args>
void print_err(fmt::format_string<Args...> format, Args &&... arguments) {
    write_err(fmt::format(format, std::forward<Args>(arguments)...));
}

/// Streams tokens to standard output, hesitating ones coloured.
class TokenPrinter {
  public:
    TokenPrinter();
    void print(std::string_view piece, const StepRecord & record);
    /// Prints the bytes held back and ends the line.
    void finish();

  private:
    bool colour_;
    std::string held_back_;  // first bytes of a character that later tokens complete
    bool at_line_start_ = true;
};

/// Shows on standard error what is in progress, from show() to clear(). On a terminal it is one line, rewritten in
/// place at most ten times a second; elsewhere a line every few seconds. While the text does not change, it counts the
/// seconds.
class ProgressLine {
  public:
    ~ProgressLine() { clear(); }
    void show(const std::string & text);
    void clear();

  private:
    using Clock = std::chrono::steady_clock;
    void put(const std::string & text);
    void count_seconds();

    std::mutex mutex_;  // protects the following
    std::condition_variable is_cleared_;
    std::string text_;           // empty: nothing is in progress
    Clock::time_point said_at_;  // when text_ was set
    Clock::time_point put_at_;
    bool is_put_ = false;
    std::thread counter_;  // runs while something is in progress
};

}  // namespace harp::cli
