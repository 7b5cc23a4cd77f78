// harp compare: the same prompt, vanilla and HARP side by side: where they part, entropies, what it costs.
#include <fmt/format.h>

#include <algorithm>

#include "commands.h"
#include "interrupt.h"
#include "report.h"
#include "session.h"
#include "terminal.h"

namespace harp::cli {

namespace {

using decoding::GeneratedToken;
using nlohmann::json;

struct Answer {
    std::vector<GeneratedToken> tokens;
    decoding::GenerationResult result;
    Statistics statistics;

    [[nodiscard]] double seconds_per_token() const {
        return result.n_generated > 0 ? result.seconds / result.n_generated : 0;
    }
    [[nodiscard]] double mean_entropy() const {
        double sum = 0;
        for (const GeneratedToken & token : tokens) sum += token.record.entropy;
        return tokens.empty() ? 0 : sum / static_cast<double>(tokens.size());
    }
};

Answer run(Session & session, ForwardPass & pass, const std::vector<llama_token> & prompt, const std::string & name) {
    Answer answer;
    decoding::Generator generator(pass);
    ProgressLine progress;
    progress.show(fmt::format("{}: reading the prompt", name));
    const auto & params = session.params();
    answer.result = generator.answer(
        {.prompt = prompt, .limits = {params.n_predict, params.antiprompt}, .sampler = session.new_sampler()},
        [&](const GeneratedToken & token) {
            answer.tokens.push_back(token);
            progress.show(fmt::format("{}: {} tokens", name, answer.tokens.size()));
            return !interrupt_requested;
        });
    answer.statistics = pass.statistics();
    return answer;
}

/// Text in lines of a column's width, with the colour codes that do not count for it.
class Column {
  public:
    Column(size_t width, bool colour) : width_(width), colour_(colour) {}

    /// @param mark the token is where the two answers part
    void add(const GeneratedToken & token, double threshold, bool mark) {
        held_back_ += token.piece;
        const std::string text = take_complete_utf8(held_back_);
        for (size_t i = 0; i < text.size();) {
            size_t end = i + 1;
            while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) ++end;
            put(text.substr(i, end - i), token.record, threshold, mark);
            i = end;
        }
    }
    [[nodiscard]] size_t n_lines() const { return lines_.size(); }
    /// Line `i` filled up with spaces to the column's width.
    [[nodiscard]] std::string line(size_t i) const {
        if (i >= lines_.size()) return std::string(width_, ' ');
        return lines_[i].text + std::string(width_ - lines_[i].n_columns, ' ');
    }

  private:
    struct Line {
        std::string text;
        size_t n_columns = 0;
    };
    void put(const std::string & character, const StepRecord & record, double threshold, bool mark) {
        if (lines_.empty() || character == "\n" || lines_.back().n_columns == width_) lines_.emplace_back();
        if (character == "\n") return;
        std::string text = colour_ ? shaded(character, record, threshold) : character;
        if (mark && colour_) text = "\033[7m" + text;  // reversed; shaded() or the line below ends it
        if (mark && colour_ && !record.hesitated) text += "\033[0m";
        lines_.back().text += text;
        ++lines_.back().n_columns;
    }
    size_t width_;
    bool colour_;
    std::string held_back_;
    std::vector<Line> lines_;
};

size_t first_difference(const Answer & a, const Answer & b) {
    const auto [it, other] =
        std::mismatch(a.tokens.begin(), a.tokens.end(), b.tokens.begin(), b.tokens.end(),
                      [](const GeneratedToken & x, const GeneratedToken & y) { return x.id == y.id; });
    return static_cast<size_t>(it - a.tokens.begin());
}

bool is_same_text(const Answer & a, const Answer & b) {
    return first_difference(a, b) == a.tokens.size() && a.tokens.size() == b.tokens.size();
}

void print_side_by_side(const Answer & vanilla, const Answer & harp, double threshold) {
    const size_t width = std::max<size_t>(20, (std::min<size_t>(terminal_width(), 160) - 3) / 2);
    const size_t part = first_difference(vanilla, harp);
    const bool same = is_same_text(vanilla, harp);
    Column left(width, shows_colour(stdout));
    Column right(width, shows_colour(stdout));
    for (size_t i = 0; i < vanilla.tokens.size(); ++i) left.add(vanilla.tokens[i], threshold, !same && i == part);
    for (size_t i = 0; i < harp.tokens.size(); ++i) right.add(harp.tokens[i], threshold, !same && i == part);
    std::string text = fmt::format("{} | {}\n{:-<{}}-+-{:-<{}}\n",
                                   styled(stdout, Style::bold, fmt::format("{:<{}}", "vanilla", width)),
                                   styled(stdout, Style::bold, "HARP"), "", width, "", width);
    for (size_t i = 0; i < std::max(left.n_lines(), right.n_lines()); ++i) {
        text += fmt::format("{} | {}\n", left.line(i), right.line(i));
    }
    write_out(text);
}

void print_figures(const Answer & vanilla, const Answer & harp) {
    const size_t part = first_difference(vanilla, harp);
    const auto figures = [](const char * name, const Answer & a) {
        return fmt::format("{:<8} {:4} tokens  {:7.1f} tokens/s  mean entropy {:.2f} bits  ended: {}\n", name,
                           a.tokens.size(), a.seconds_per_token() > 0 ? 1 / a.seconds_per_token() : 0.0,
                           a.mean_entropy(), to_string(a.result.reason));
    };
    std::string text = "\n" + figures("vanilla", vanilla) + figures("HARP", harp);
    if (is_same_text(vanilla, harp)) {
        text += "The two answers are the same.\n";
    } else if (part < vanilla.tokens.size() && part < harp.tokens.size()) {
        text += fmt::format("They part at token {}: vanilla {:?}, HARP {:?} (entropy {:.2f} bits).\n", part + 1,
                            vanilla.tokens[part].piece, harp.tokens[part].piece, harp.tokens[part].record.entropy);
    } else {
        text += fmt::format("They part after token {}: one ends there.\n", part);
    }
    if (harp.statistics.steps > 0 && vanilla.seconds_per_token() > 0) {
        text += fmt::format(
            "HARP hesitated at {} of {} steps ({:.0f} %) and took x{:.2f} the time per token (one run: an "
            "indication).\n",
            harp.statistics.hesitations, harp.statistics.steps,
            100.0 * static_cast<double>(harp.statistics.hesitations) / static_cast<double>(harp.statistics.steps),
            harp.seconds_per_token() / vanilla.seconds_per_token());
    }
    write_out(text);
}

json answer_json(const Answer & answer) {
    json tokens = json::array();
    for (const GeneratedToken & token : answer.tokens)
        tokens.push_back(token_json(token.id, token.piece, token.record));
    return {{"text", answer.result.text},
            {"tokens", tokens},
            {"stop_reason", to_string(answer.result.reason)},
            {"seconds", answer.result.seconds},
            {"mean_entropy", answer.mean_entropy()},
            {"statistics", statistics_json(answer.statistics)}};
}

}  // namespace

int compare_command(int argc, char ** argv) {
    CommandLine line(
        "compare",
        "Answers the same prompt without and with HARP and shows the two side by side: where they part, entropies,\n"
        "and what HARP cost.",
        "harp compare -m model.gguf -p \"A bat and a ball cost 1.10 together. The bat costs 1.00 more. The ball?\"");
    bool as_json = false;
    std::string format = "auto";
    line.app.add_flag("--json", as_json, "print one JSON object");
    add_format_flag(line.app, format);
    line.harp.add_to(line.app);
    common_params params;
    if (const auto code = line.parse(argc, argv, params)) return *code;
    const auto options = line.harp.options();
    refuse_speculation(params);
    if (!options) throw Error(ErrorCode::invalid_option, "--harp-off leaves nothing to compare with");
    const std::string prompt_text = read_prompt(line, params);

    Session session(params, options);
    const FormattedPrompt prompt = format_prompt(session, prompt_text, format);
    const auto tokens = session.tokenize(prompt.text, prompt.is_chat);
    ForwardPass & vanilla_pass = session.add_pass(std::nullopt);
    const Answer vanilla = run(session, vanilla_pass, tokens, "vanilla");
    const Answer harp = run(session, session.pass(), tokens, "HARP");

    if (as_json) {
        const size_t part = first_difference(vanilla, harp);
        const json output = {
            {"vanilla", answer_json(vanilla)},
            {"harp", answer_json(harp)},
            {"first_difference", is_same_text(vanilla, harp) ? json() : json(part)},
            {"cost_ratio",
             vanilla.seconds_per_token() > 0 ? harp.seconds_per_token() / vanilla.seconds_per_token() : 0.0},
            {"prompt", prompt_json(prompt, tokens.size())},
            {"options", options_json(options)},
            {"sampler_seed", session.sampler_seed()},
            {"model", model_json(session.model(), params.model.path)},
            {"build", build_json()}};
        write_out(dump(output, 2) + "\n");
    } else {
        print_side_by_side(vanilla, harp, options->threshold);
        print_figures(vanilla, harp);
    }
    return interrupt_requested ? exit_interrupted : exit_ok;
}

}  // namespace harp::cli
