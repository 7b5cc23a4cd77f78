#include "flags/terminal.h"

#include <fmt/format.h>
#include <locale.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <cwchar>
#include <optional>

#include "harp/error.h"

namespace harp::cli {

namespace {

constexpr const char * reset = "\033[0m";
constexpr std::chrono::seconds between_lines(4);  // between lines of progress if standard error is no terminal

std::optional<bool> colours_wanted;

/// Length of the UTF-8 character that begins with `lead`; 0 if none can.
size_t character_length(unsigned char lead) {
    if (lead < 0x80) return 1;
    if (lead >= 0xC2 && lead < 0xE0) return 2;
    if (lead >= 0xE0 && lead < 0xF0) return 3;
    if (lead >= 0xF0 && lead < 0xF5) return 4;
    return 0;
}

/// Whether `text` begins with a valid character of `length` bytes (no overlong forms, no surrogates).
bool is_valid_character(std::string_view text, size_t length) {
    if (length == 0 || text.size() < length) return false;
    for (size_t i = 1; i < length; ++i) {
        if ((static_cast<unsigned char>(text[i]) & 0xC0) != 0x80) return false;
    }
    const auto lead = static_cast<unsigned char>(text[0]);
    const auto second = static_cast<unsigned char>(length > 1 ? text[1] : 0);
    const bool overlong = (lead == 0xE0 && second < 0xA0) || (lead == 0xF0 && second < 0x90);
    const bool surrogate = lead == 0xED && second >= 0xA0;
    const bool too_large = lead == 0xF4 && second >= 0x90;
    return !overlong && !surrogate && !too_large;
}

}  // namespace

bool is_terminal(std::FILE * stream) {
    return isatty(fileno(stream)) != 0;
}

static bool is_dumb_terminal() {
    const char * terminal = std::getenv("TERM");
    return terminal != nullptr && std::strcmp(terminal, "dumb") == 0;
}

bool can_erase_lines(std::FILE * stream) {
    return is_terminal(stream) && !is_dumb_terminal();
}

void set_colours(bool shown) {
    colours_wanted = shown;
}

bool shows_colour(std::FILE * stream) {
    if (colours_wanted) return *colours_wanted;
    const char * no_colour = std::getenv("NO_COLOR");
    const bool refused = (no_colour != nullptr && *no_colour != '\0') || is_dumb_terminal();
    return is_terminal(stream) && !refused;
}

size_t terminal_width() {
    winsize size{};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    return 80;
}

std::string styled(std::FILE * stream, Style style, std::string_view text) {
    if (!shows_colour(stream)) return std::string(text);
    constexpr std::array<const char *, 5> codes = {"\033[1m", "\033[2m", "\033[31m", "\033[32m", "\033[33m"};
    return fmt::format("{}{}{}", codes[static_cast<size_t>(style)], text, reset);
}

std::string shaded(std::string_view text, const StepRecord & record) {
    if (!record.hesitated) return std::string(text);
    // 256-colour ramp, readable on dark and light backgrounds: ochre, orange, red, magenta
    constexpr std::array<int, 4> ramp = {172, 208, 196, 199};
    const double bits_above_one = std::max(0.0, record.entropy - 1);
    const auto step = std::min<size_t>(ramp.size() - 1, static_cast<size_t>(bits_above_one));
    return fmt::format("\033[38;5;{}m{}{}", ramp[step], text, reset);
}

std::string take_complete_utf8(std::string & text) {
    size_t end = text.size();
    for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
        const auto byte = static_cast<unsigned char>(text[text.size() - back]);
        if ((byte & 0xC0) == 0x80) continue;  // inside a character
        if (character_length(byte) > back) end = text.size() - back;
        break;
    }
    std::string complete = text.substr(0, end);
    text.erase(0, end);
    return complete;
}

int columns_of(std::string_view character) {
    static const locale_t utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr);  // whatever the program's locale is
    if (utf8 == nullptr)
        return character.size() == 1 && std::iscntrl(static_cast<unsigned char>(character[0])) ? -1 : 1;
    const locale_t before = uselocale(utf8);
    wchar_t wide = 0;
    std::mbstate_t state{};
    const bool is_whole = std::mbrtowc(&wide, character.data(), character.size(), &state) == character.size();
    const int columns = is_whole ? wcwidth(wide) : -1;
    uselocale(before);
    return columns;
}

size_t find_invalid_utf8(std::string_view text) {
    for (size_t i = 0; i < text.size();) {
        const size_t length = character_length(static_cast<unsigned char>(text[i]));
        if (!is_valid_character(text.substr(i), length)) return i;
        i += length;
    }
    return std::string_view::npos;
}

std::string to_valid_utf8(std::string_view text) {
    std::string valid;
    while (true) {
        const size_t bad = find_invalid_utf8(text);
        valid += text.substr(0, bad);
        if (bad == std::string_view::npos) return valid;
        valid += "\xEF\xBF\xBD";
        text.remove_prefix(bad + 1);
    }
}

void write_out(std::string_view text) {
    const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
    if (!written) throw Error(ErrorCode::io, fmt::format("cannot write to standard output: {}", std::strerror(errno)));
}

void write_err(std::string_view text) noexcept {
    (void)!std::fwrite(text.data(), 1, text.size(), stderr);
}

TokenPrinter::TokenPrinter() : colour_(shows_colour(stdout)) {}

void TokenPrinter::print(std::string_view piece, const StepRecord & record) {
    held_back_ += piece;
    const std::string text = take_complete_utf8(held_back_);
    if (text.empty()) return;
    at_line_start_ = text.back() == '\n';
    write_out(colour_ ? shaded(text, record) : text);
}

void TokenPrinter::finish() {
    std::string rest = to_valid_utf8(held_back_);
    held_back_.clear();
    if (!at_line_start_ || !rest.empty()) rest += '\n';
    if (!rest.empty()) write_out(rest);
    at_line_start_ = true;
}

void ProgressLine::show(const std::string & text) {
    const std::lock_guard lock(mutex_);
    const auto now = Clock::now();
    if (text_.empty()) {
        put_at_ = now - std::chrono::seconds(1);
        if (!can_erase_lines(stderr)) put_at_ = now;  // short operations print nothing there
        counter_ = std::thread([this] { count_seconds(); });
    }
    text_ = text;
    said_at_ = now;
    if (now - put_at_ >= (can_erase_lines(stderr) ? std::chrono::milliseconds(100) : between_lines)) put(text);
}

void ProgressLine::put(const std::string & text) {
    print_err("{}{}{}", can_erase_lines(stderr) ? "\r\033[K" : "", text, can_erase_lines(stderr) ? "" : "\n");
    std::fflush(stderr);
    put_at_ = Clock::now();
    is_put_ = true;
}

void ProgressLine::count_seconds() {
    std::unique_lock lock(mutex_);
    while (!is_cleared_.wait_for(lock, std::chrono::seconds(1), [this] { return text_.empty(); })) {
        const auto now = Clock::now();
        if (now - put_at_ < (can_erase_lines(stderr) ? std::chrono::seconds(1) : between_lines)) continue;
        const auto waited = std::chrono::duration_cast<std::chrono::seconds>(now - said_at_).count();
        put(waited < 2 ? text_ : fmt::format("{} (since {} s)", text_, waited));
    }
}

void ProgressLine::clear() {
    {
        const std::lock_guard lock(mutex_);
        if (text_.empty()) return;
        text_.clear();
        if (is_put_ && can_erase_lines(stderr)) print_err("\r\033[K");
        std::fflush(stderr);
        is_put_ = false;
    }
    is_cleared_.notify_all();
    counter_.join();
}

}  // namespace harp::cli
