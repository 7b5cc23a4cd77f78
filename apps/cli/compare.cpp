// harp compare: one prompt answered without HARP and with sets of options, side by side: differences, entropies, cost.
#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <span>

#include "commands.h"
#include "decoding/feed.h"
#include "flags/terminal.h"
#include "model/interrupt.h"
#include "model/loaded_model.h"
#include "model/report.h"
#include "sweep.h"

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

/// One of the things compared.
struct Set {
    std::string name;
    std::optional<Options> options;  ///< nullopt: vanilla
};

/// Parses "view=last,beta=2", which overrides `options`, those of the other flags.
Set parse_set(const std::string & text, Options options) {
    std::set<std::string> names;
    for (const std::string & item : make_axis("", text).values) {
        const size_t equals = item.find('=');
        if (equals == std::string::npos)
            throw Error(ErrorCode::invalid_option, fmt::format("option '--with': '{}'; allowed: NAME=VALUE,...", text));
        const std::string name = item.substr(0, equals);
        if (!names.insert(name).second)
            throw Error(ErrorCode::invalid_option, fmt::format("option '--with': {}: '{}' is given twice", text, name));
        naming_flag("option '--with'", [&] { set_option(options, name, item.substr(equals + 1)); });
    }
    naming_flag(fmt::format("option '--with': {}", text), [&] { validate(options); });
    return {text, options};
}

std::vector<Set> sets_of(const Options & options, const std::vector<std::string> & with) {
    std::vector<Set> sets = {{"vanilla", std::nullopt}};
    if (with.empty()) sets.push_back({"HARP", options});
    for (const std::string & text : with) sets.push_back(parse_set(text, options));
    return sets;
}

Answer run(LoadedModel & loaded, ForwardPass & pass, const std::vector<llama_token> & prompt, const Set & set,
           const std::vector<llama_token> & negative_prompt) {
    Answer answer;
    decoding::Generator generator(pass);
    pass.reset_statistics();
    ProgressLine progress;
    progress.show(fmt::format("{}: reading the prompt", set.name));
    const auto & params = loaded.params();
    answer.result = generator.answer({.prompt = prompt,
                                      .limits = {params.n_predict, params.antiprompt},
                                      .sampler = loaded.new_sampler(),
                                      .options = set.options,
                                      .negative_prompt = decoding::negative_prompt_for(set.options, negative_prompt)},
                                     [&](const GeneratedToken & token) {
                                         answer.tokens.push_back(token);
                                         progress.show(fmt::format("{}: {} tokens", set.name, answer.tokens.size()));
                                         return !interrupt_requested;
                                     });
    answer.statistics = pass.statistics();
    return answer;
}

/// Text broken into lines of a column's width. Colour codes do not count as width.
class Column {
  public:
    Column(size_t width, bool colour) : width_(width), colour_(colour) {}

    /// @param mark whether the answer differs from the vanilla one from this token on
    void add(const GeneratedToken & token, bool mark) {
        held_back_ += token.piece;
        const std::string text = take_complete_utf8(held_back_);
        for (size_t i = 0; i < text.size();) {
            size_t end = i + 1;
            while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) ++end;
            put(text.substr(i, end - i), token.record, mark);
            i = end;
        }
    }
    [[nodiscard]] size_t n_lines() const { return lines_.size(); }
    /// Line `i`, padded with spaces to the column's width.
    [[nodiscard]] std::string line(size_t i) const {
        if (i >= lines_.size()) return std::string(width_, ' ');
        return lines_[i].text + std::string(width_ - lines_[i].n_columns, ' ');
    }

  private:
    struct Line {
        std::string text;
        size_t n_columns = 0;
    };
    void put(const std::string & character, const StepRecord & record, bool mark) {
        if (character == "\t") {
            constexpr size_t between_stops = 8;
            const size_t n_columns = lines_.empty() ? 0 : lines_.back().n_columns;
            const size_t stop = std::min(width_, (n_columns / between_stops + 1) * between_stops);
            for (size_t i = n_columns; i < std::max(stop, n_columns + 1); ++i) put(" ", record, mark);
            return;
        }
        const int n_columns = columns_of(character);
        if (n_columns < 0 && character != "\n") return put(replacement, record, mark);  // it would move the cursor
        const bool fits = !lines_.empty() && lines_.back().n_columns + static_cast<size_t>(n_columns) <= width_;
        if (!fits || character == "\n") lines_.emplace_back();
        if (character == "\n") return;
        std::string text = colour_ ? shaded(character, record) : character;
        if (mark && colour_) text = "\033[7m" + text;  // reverse video; ended by shaded() or by the line below
        if (mark && colour_ && !record.hesitated) text += "\033[0m";
        lines_.back().text += text;
        lines_.back().n_columns += static_cast<size_t>(n_columns);
    }
    static constexpr const char * replacement = "\xEF\xBF\xBD";
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

constexpr size_t least_width = 20;  // of a column

/// Prints the answers side by side, the vanilla one first.
void print_side_by_side(std::span<const Set> sets, std::span<const Answer> answers) {
    const size_t n = answers.size();
    const size_t gaps = 3 * (n - 1);
    const size_t width = std::max(least_width, (std::max(std::min(terminal_width(), 80 * n), gaps) - gaps) / n);
    std::vector<Column> columns;
    size_t n_lines = 0;
    std::string text;
    std::string rule;
    for (size_t k = 0; k < n; ++k) {
        const size_t part = first_difference(answers[0], answers[k]);
        const bool same = is_same_text(answers[0], answers[k]);
        Column & column = columns.emplace_back(width, shows_colour(stdout));
        for (size_t i = 0; i < answers[k].tokens.size(); ++i) column.add(answers[k].tokens[i], !same && i == part);
        n_lines = std::max(n_lines, column.n_lines());
        const std::string name = fmt::format("{:<{}.{}}", sets[k].name, width, width);
        text += (k > 0 ? " | " : "") + styled(stdout, Style::bold, name);
        rule += (k > 0 ? "-+-" : "") + std::string(width, '-');
    }
    text += "\n" + rule + "\n";
    for (size_t i = 0; i < n_lines; ++i) {
        for (size_t k = 0; k < n; ++k) text += (k > 0 ? " | " : "") + columns[k].line(i);
        text += "\n";
    }
    write_out(text);
}

double cost_ratio(const Answer & answer, const Answer & vanilla) {
    return vanilla.seconds_per_token() > 0 ? answer.seconds_per_token() / vanilla.seconds_per_token() : 0.0;
}

std::string difference_text(const Set & set, const Answer & answer, const Answer & vanilla) {
    const size_t part = first_difference(vanilla, answer);
    std::string text = fmt::format("{}: ", set.name);
    if (is_same_text(vanilla, answer)) {
        text += "the same answer.";
    } else if (part < vanilla.tokens.size() && part < answer.tokens.size()) {
        text += fmt::format("parts at token {}: vanilla {:?}, here {:?} (entropy {:.2f} bits).", part + 1,
                            vanilla.tokens[part].piece, answer.tokens[part].piece, answer.tokens[part].record.entropy);
    } else {
        text += fmt::format("parts after token {}: one ends there.", part);
    }
    const Statistics & s = answer.statistics;
    if (s.steps > 0 && vanilla.seconds_per_token() > 0) {
        text += fmt::format(
            " Hesitated at {} of {} steps ({:.0f} %), took x{:.2f} the time per token (one run: an indication).",
            s.hesitations, s.steps, 100.0 * static_cast<double>(s.hesitations) / static_cast<double>(s.steps),
            cost_ratio(answer, vanilla));
    }
    return text + "\n";
}

void print_figures(std::span<const Set> sets, std::span<const Answer> answers) {
    size_t width = 0;
    for (const Set & set : sets) width = std::max(width, set.name.size());
    std::string text = "\n";
    for (size_t k = 0; k < answers.size(); ++k) {
        const Answer & a = answers[k];
        text += fmt::format("{:<{}} {:4} tokens  {:7.1f} tokens/s  mean entropy {:.2f} bits  ended: {}\n", sets[k].name,
                            width, a.tokens.size(), a.seconds_per_token() > 0 ? 1 / a.seconds_per_token() : 0.0,
                            a.mean_entropy(), to_string(a.result.reason));
    }
    for (size_t k = 1; k < answers.size(); ++k) text += difference_text(sets[k], answers[k], answers[0]);
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

/// An answer, and how it differs from the vanilla one.
json set_json(const Set & set, const Answer & answer, const Answer & vanilla) {
    json output = answer_json(answer);
    output["name"] = set.name;
    output["options"] = options_json(set.options);
    output["first_difference"] = is_same_text(vanilla, answer) ? json() : json(first_difference(vanilla, answer));
    output["cost_ratio"] = cost_ratio(answer, vanilla);
    return output;
}

}  // namespace

int compare_command(int argc, char ** argv) {
    CommandLine line(
        "compare",
        "Answers the same prompt without HARP and with one or more sets of options, and shows the answers side by "
        "side:\n"
        "where they differ, entropies, and what each cost.",
        "harp compare -m model.gguf -p \"Name the capital of Australia.\" --with view=last,beta=2,threshold=2 "
        "--with beta=0.5");
    bool as_json = false;
    std::string format = "auto";
    std::vector<std::string> with;
    line.app.add_flag("--json", as_json, "print one JSON object");
    line.app
        .add_option("--with", with,
                    "NAME=VALUE,...: a set of HARP options, which override the --harp- flags; repeat the flag for more "
                    "sets [default one set, that of the --harp- flags]")
        ->allow_extra_args(false);
    add_format_flag(line.app, format);
    line.harp.add_to(line.app);
    common_params params;
    if (const auto code = line.parse(argc, argv, params)) return *code;
    const auto options = line.harp.options();
    refuse_speculation(params);
    if (!options)
        throw Error(ErrorCode::invalid_option, line.harp.switched_off_by() + " leaves nothing to compare with");
    const std::vector<Set> sets = sets_of(*options, with);
    std::vector<Options> looking;
    for (const Set & set : sets) {
        if (set.options) looking.push_back(*set.options);
    }
    line.harp.check_negative_prompt(looking);
    const std::string prompt_text = read_prompt(line, params);
    LoadedModel loaded(params, options_of_pass(looking), line.harp.n_ctx_twin());
    const FormattedPrompt prompt = format_prompt(loaded, prompt_text, format);
    const auto tokens = loaded.tokenize(prompt.text, prompt.is_chat);
    const auto negative_prompt = negative_prompt_of(loaded, line.harp.negative_prompt(looking), format);
    ForwardPass & vanilla_pass = loaded.add_pass(std::nullopt);
    std::vector<Answer> answers;
    for (const Set & set : sets) {
        try {
            answers.push_back(run(loaded, set.options ? loaded.pass() : vanilla_pass, tokens, set, negative_prompt));
        } catch (const Error & error) {  // within the prompt; the answers before it are shown
            if (error.code() != ErrorCode::aborted || answers.empty()) throw;
        }
        if (interrupt_requested) break;
    }
    const std::span<const Set> answered = std::span(sets).first(answers.size());

    if (as_json) {
        json compared = json::array();
        for (size_t k = 1; k < answers.size(); ++k) compared.push_back(set_json(sets[k], answers[k], answers[0]));
        const json output = {{"vanilla", answer_json(answers[0])},
                             {"sets", compared},
                             {"complete", !interrupt_requested.load()},
                             {"prompt", prompt_json(prompt, tokens.size())},
                             {"sampler_seed", loaded.sampler_seed()},
                             {"model", model_json(loaded.model(), params.model.path)},
                             {"build", build_json()}};
        write_out(dump(output, 2) + "\n");
    } else {
        print_side_by_side(answered, answers);
        print_figures(answered, answers);
    }
    if (interrupt_requested) print_err("harp compare: interrupted at answer {} of {}\n", answers.size(), sets.size());
    return interrupt_requested ? exit_interrupted : exit_ok;
}

}  // namespace harp::cli
