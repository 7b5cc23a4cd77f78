// harp chat: several turns; both streams keep their KV cache between turns. Ctrl-C stops an answer, not the program.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <iostream>
#include <optional>

#include "commands.h"
#include "interrupt.h"
#include "report.h"
#include "session.h"
#include "terminal.h"

namespace harp::cli {

namespace {

constexpr const char * help_text =
    "/set NAME VALUE  change a HARP option, for example: /set threshold 2\n"
    "/options         the options in effect\n"
    "/clear           forget the conversation\n"
    "/exit            leave (also Ctrl-D; Ctrl-C stops an answer)\n";

class Chat {
  public:
    explicit Chat(Session & session)
        : session_(session),
          sampler_(session.new_sampler()),
          generator_(session.pass(), *sampler_),
          n_predict_(session.params().n_predict) {
        clear();
    }

    /// @return false to leave
    bool on_line(const std::string & line) {
        if (line.find_first_not_of(" \t\r") == std::string::npos) return true;
        if (line == "/exit" || line == "/quit") return false;
        if (line[0] == '/') {
            command(line);
        } else if (const size_t bad = find_invalid_utf8(line); bad != std::string::npos) {
            fmt::print(stderr, "that line is not valid UTF-8 (byte at offset {})\n", bad);
        } else {
            answer(line);
        }
        return true;
    }

  private:
    void clear() {
        messages_.clear();
        if (!session_.params().system_prompt.empty()) add("system", session_.params().system_prompt);
    }

    void add(const std::string & role, const std::string & content) {
        messages_.push_back(chat_message(role, content));
    }

    void command(const std::string & line) {
        if (line == "/clear") {
            clear();
            fmt::print(stderr, "the conversation is forgotten\n");
        } else if (line == "/options") {
            fmt::print(stderr, "{}\n",
                       session_.pass().enabled() ? options_text(session_.pass().sequence_options(0)) : "off");
        } else if (line.rfind("/set ", 0) == 0) {
            set_option_from(line.substr(5));
        } else {
            fmt::print(stderr, "{}", help_text);
        }
    }

    void set_option_from(const std::string & text) {
        const size_t space = text.find(' ');
        if (!session_.pass().enabled() || space == std::string::npos) {
            fmt::print(stderr, "{}\n",
                       session_.pass().enabled() ? "give a name and a value, for example: /set threshold 2"
                                                 : "HARP is off (--harp-off): start anew without it");
            return;
        }
        try {
            Options options = session_.pass().sequence_options(0);
            set_option(options, text.substr(0, space), text.substr(space + 1));
            session_.pass().set_sequence_options(0, options);
            fmt::print(stderr, "{}\n", options_text(options));
        } catch (const Error & error) {
            fmt::print(stderr, "{}\n", error.what());
        }
    }

    void answer(const std::string & line) {
        add("user", line);
        interrupt_requested = false;
        session_.pass().reset_statistics();
        const double threshold = session_.pass().enabled() ? session_.pass().sequence_options(0).threshold : 0;
        TokenPrinter printer(threshold);
        std::string text;
        try {
            ProgressLine progress;
            const auto prompt = session_.tokenize(session_.apply_chat_template(messages_), /*parse_special=*/true);
            generator_.set_prompt(prompt, [&](size_t done, size_t total) {
                if (done < total) progress.show(fmt::format("reading: {} of {} tokens", done, total));
            });
            progress.clear();
            const auto result =
                generator_.generate({n_predict_, session_.params().antiprompt}, [&](const auto & token) {
                    text += token.piece;
                    printer.print(token.piece, token.record);
                    return !interrupt_requested;
                });
            printer.finish();
            print_status(result);
        } catch (const Error & error) {
            printer.finish();
            if (error.code() == ErrorCode::io) throw;
            if (text.empty()) messages_.pop_back();
            fmt::print(stderr, "{}{}\n", error.what(),
                       error.code() == ErrorCode::invalid_input ? "; /clear begins anew" : "");
        }
        if (!text.empty()) add("assistant", to_valid_utf8(text));
        interrupt_requested = false;
    }

    void print_status(const decoding::GenerationResult & result) {
        const Statistics & s = session_.pass().statistics();
        std::string status = fmt::format("[{} tokens, {:.1f} tokens/s", result.n_generated,
                                         result.seconds > 0 ? result.n_generated / result.seconds : 0.0);
        if (s.steps > 0) status += fmt::format(", hesitated {} of {}", s.hesitations, s.steps);
        if (result.reason == decoding::StopReason::interrupted) status += ", stopped";
        if (result.reason == decoding::StopReason::context_full) status += ", context full: /clear begins anew";
        fmt::print(stderr, "{}\n", styled(stderr, Style::dim, status + "]"));
    }

    Session & session_;
    common_sampler_ptr sampler_;
    decoding::Generator generator_;
    int n_predict_;
    std::vector<common_chat_msg> messages_;
};

/// The next line of standard input; nullopt at its end, an empty line after Ctrl-C.
std::optional<std::string> read_line() {
    if (is_terminal(stdin)) {
        fmt::print("{}", styled(stdout, Style::bold, "> "));
        std::fflush(stdout);
    }
    std::string line;
    if (std::getline(std::cin, line)) return line;
    const bool was_interrupted = interrupt_requested.exchange(false);
    if (!was_interrupted) return std::nullopt;
    std::cin.clear();
    clearerr(stdin);
    fmt::print("\n");
    return "";
}

}  // namespace

int chat_command(int argc, char ** argv) {
    CommandLine line(
        "chat",
        "Talks with the model, several turns. The KV cache is kept between turns, for the reframed pass too.\n"
        "Ctrl-C stops an answer, Ctrl-D leaves; /help lists what else one can say.",
        "harp chat -m model.gguf --harp-threshold 2");
    line.harp.add_to(line.app);
    common_params params;
    if (const auto code = line.parse(argc, argv, params)) return *code;
    const auto options = line.harp.options();
    Session session(params, options);
    if (!session.has_chat_template()) {
        fmt::print(stderr,
                   "harp chat: the model has no chat template of its own; using llama.cpp's default (--chat-template "
                   "chooses one)\n");
    }
    Chat chat(session);
    fmt::print(stderr, "{}\n",
               styled(stderr, Style::dim,
                      fmt::format("harp: {}. Ctrl-D leaves, /help lists commands.", options_text(options))));
    while (const auto text = read_line()) {
        if (!chat.on_line(*text)) break;
    }
    if (is_terminal(stdin)) fmt::print("\n");
    return exit_ok;
}

}  // namespace harp::cli
