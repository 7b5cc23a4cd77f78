// harp chat: several turns; both streams keep their KV cache between turns. Ctrl-C stops an answer, not the program.
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <sstream>
#include <utility>

#include "commands.h"
#include "decoding/feed.h"
#include "flags/files.h"
#include "flags/terminal.h"
#include "model/interrupt.h"
#include "model/loaded_model.h"
#include "model/report.h"

namespace harp::cli {

namespace {

constexpr const char * help_text =
    "/set NAME VALUE  change a HARP option, for example: /set threshold 2\n"
    "/options         the options in effect\n"
    "/clear           forget the conversation\n"
    "/exit            leave (also Ctrl-D; Ctrl-C stops an answer)\n";

class Chat {
  public:
    Chat(LoadedModel & loaded, std::vector<llama_token> negative_prompt)
        : loaded_(loaded),
          negative_prompt_(std::move(negative_prompt)),
          sampler_(loaded.new_sampler()),
          drafter_(decoding::Drafter::make(loaded.pass(), loaded.params())),
          generator_(loaded.pass(), drafter_.get()),
          n_predict_(loaded.params().n_predict) {
        clear();
    }

    /// @return false to leave
    bool on_line(const std::string & line) {
        const size_t end = line.find_last_not_of(" \t\r");
        if (end == std::string::npos) return true;
        if (line[0] == '/') {
            const std::string name = line.substr(0, end + 1);
            if (name == "/exit" || name == "/quit") return false;
            command(name);
        } else if (const size_t bad = find_invalid_utf8(line); bad != std::string::npos) {
            print_err("that line is not valid UTF-8 (byte at offset {})\n", bad);
        } else {
            answer(line);
        }
        return true;
    }

  private:
    void clear() {
        messages_.clear();
        if (!loaded_.params().system_prompt.empty()) add("system", loaded_.params().system_prompt);
    }

    void add(const std::string & role, const std::string & content) {
        messages_.push_back(chat_message(role, content));
    }

    void command(const std::string & line) {
        if (line == "/clear") {
            clear();
            print_err("the conversation is forgotten\n");
        } else if (line == "/options") {
            print_err("{}\n", loaded_.pass().enabled() ? options_text(loaded_.pass().sequence_options(0)) : "off");
        } else if (line.rfind("/set ", 0) == 0 || line.rfind("/set\t", 0) == 0) {
            set_option_from(line.substr(5));
        } else {
            print_err("{}", help_text);
        }
    }

    void set_option_from(const std::string & text) {
        std::istringstream words(text);
        std::string name, value, rest;
        const bool is_pair = (words >> name >> value) && !(words >> rest);
        if (!loaded_.pass().enabled() || !is_pair) {
            print_err("{}\n", loaded_.pass().enabled() ? "give a name and a value, for example: /set threshold 2"
                                                       : "HARP is off; restart without --harp-off to use it");
            return;
        }
        try {
            Options options = loaded_.pass().sequence_options(0);
            set_option(options, name, value);
            loaded_.pass().set_sequence_options(0, options);
            print_err("{}\n", options_text(options));
        } catch (const Error & error) {
            print_err("{}\n", error.what());
        }
    }

    void answer(const std::string & line) {
        add("user", line);
        clear_interrupt();
        loaded_.pass().reset_statistics();
        TokenPrinter printer;
        std::string text;
        try {
            ProgressLine progress;
            progress.show("reading");
            const auto prompt = loaded_.tokenize(loaded_.apply_chat_template(messages_), /*parse_special=*/true);
            const auto on_prompt = [&](size_t done, size_t total) {
                if (done == total) return progress.clear();
                progress.show(fmt::format("reading: {} of {} tokens", done, total));
            };
            const auto on_token = [&](const decoding::GeneratedToken & token) {
                text += token.piece;
                printer.print(token.piece, token.record);
                return !interrupt_requested;
            };
            std::optional<Options> options;
            if (loaded_.pass().enabled()) options = loaded_.pass().sequence_options(0);
            const auto result =
                generator_.answer({.prompt = prompt,
                                   .limits = {n_predict_, loaded_.params().antiprompt},
                                   .sampler = sampler_.clone(),
                                   .negative_prompt = decoding::negative_prompt_for(options, negative_prompt_),
                                   .reuses_prefix = true},
                                  on_token, on_prompt);
            printer.finish();
            print_status(result);
        } catch (const Error & error) {
            printer.finish();
            if (error.code() == ErrorCode::io) throw;
            print_err("{}{}\n", error.what(), error.code() == ErrorCode::invalid_input ? "; /clear begins anew" : "");
        }
        if (text.empty()) {
            messages_.pop_back();  // a question without an answer; templates want the two by turns
        } else {
            add("assistant", to_valid_utf8(text));
        }
        clear_interrupt();
    }

    void print_status(const decoding::GenerationResult & result) {
        const Statistics & s = loaded_.pass().statistics();
        std::string status = fmt::format("[{} tokens, {:.1f} tokens/s", result.n_generated,
                                         result.seconds > 0 ? result.n_generated / result.seconds : 0.0);
        if (s.steps > 0) status += fmt::format(", hesitated {} of {}", s.hesitations, s.steps);
        if (result.reason == decoding::StopReason::interrupted) status += ", stopped";
        if (result.reason == decoding::StopReason::context_full) status += ", context full: /clear begins anew";
        print_err("{}\n", styled(stderr, Style::dim, status + "]"));
    }

    LoadedModel & loaded_;
    std::vector<llama_token> negative_prompt_;
    decoding::Sampler sampler_;
    std::unique_ptr<decoding::Drafter> drafter_;
    decoding::Generator generator_;
    int n_predict_;
    std::vector<common_chat_msg> messages_;
};

/// Reads lines of standard input, with a prompt if it is a terminal.
class LineReader {
  public:
    /// @return nullopt at the end of the input, an empty line after Ctrl-C
    std::optional<std::string> next() {
        show_prompt();
        while (true) {
            if (const size_t end = held_back_.find('\n'); end != std::string::npos) return take(end + 1);
            if (!wait_for_input(STDIN_FILENO)) {
                clear_interrupt();
                held_back_.clear();
                fmt::print("\n");
                return "";
            }
            std::array<char, 4096> buffer{};
            const ssize_t n = read(STDIN_FILENO, buffer.data(), buffer.size());
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) throw Error(ErrorCode::io, fmt::format("cannot read standard input: {}", std::strerror(errno)));
            if (n == 0) {
                if (held_back_.empty()) return std::nullopt;
                return take(held_back_.size());
            }
            held_back_.append(buffer.data(), static_cast<size_t>(n));
        }
    }

  private:
    static void show_prompt() {
        if (!is_terminal(stdin)) return;
        fmt::print("{}", styled(stdout, Style::bold, "> "));
        std::fflush(stdout);
    }
    /// @return the first `size` bytes without their newline, or CR LF
    std::string take(size_t size) {
        std::string line = held_back_.substr(0, size);
        held_back_.erase(0, size);
        if (std::exchange(is_first_, false)) remove_byte_order_mark(line);
        for (const char end : {'\n', '\r'}) {
            if (!line.empty() && line.back() == end) line.pop_back();
        }
        return line;
    }
    std::string held_back_;  // read, but not yet returned
    bool is_first_ = true;
};

}  // namespace

int chat_command(int argc, char ** argv) {
    CommandLine line(
        "chat",
        "Talks with the model, in several turns. The KV cache is kept between turns, for the reframed pass too.\n"
        "Ctrl-C stops an answer, Ctrl-D leaves; /help lists commands.",
        "harp chat -m model.gguf --harp-threshold 2");
    line.harp.add_to(line.app);
    common_params params;
    if (const auto code = line.parse(argc, argv, params)) return *code;
    const auto options = line.harp.options();
    if (options) line.harp.check_negative_prompt({&*options, 1});
    LoadedModel loaded(params, options, line.harp.n_ctx_twin());
    loaded.check_generates();
    if (!loaded.has_chat_template()) {
        print_err(
            "harp chat: the model has no chat template of its own; using llama.cpp's default (--chat-template "
            "chooses one)\n");
    }
    Chat chat(loaded, negative_prompt_of(loaded, line.harp.negative_prompt(), "auto"));
    print_err("{}\n", styled(stderr, Style::dim,
                             fmt::format("harp: {}. Ctrl-D leaves, /help lists commands.", options_text(options))));
    LineReader lines;
    while (const auto text = lines.next()) {
        if (!chat.on_line(*text)) break;
    }
    if (is_terminal(stdin)) fmt::print("\n");
    return exit_ok;
}

}  // namespace harp::cli
