#include "bench_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "flags/terminal.h"

namespace harp::cli {

using decoding::Spread;
using nlohmann::json;

namespace {

const std::vector<std::string> headings = {
    "method", "steps/s",  "step time, x vanilla", "with prompts, x", "first token", "hesitated", "twin rows",
    "cache",  "accepted", "same tokens"};

std::string range(const Spread & s) {
    return fmt::format("{:.2f} ({:.2f}..{:.2f})", s.median, s.low, s.high);
}

std::vector<std::string> cells(const BenchRow & row, size_t n_prompts) {
    return {row.name,
            fmt::format("{:.1f}", row.steps_per_second.median),
            range(row.step_ratio),
            range(row.total_ratio),
            fmt::format("{:.0f} ms", 1000 * row.first_token_seconds.median),
            row.hesitation_share < 0 ? "-" : fmt::format("{:.0f} %", 100 * row.hesitation_share),
            row.hesitation_share < 0 ? "-" : fmt::format("{:.2f}", row.twin_rows_per_step),
            fmt::format("{:.1f} MB", static_cast<double>(row.cache_bytes) / 1e6),
            row.acceptance < 0 ? "-" : fmt::format("{:.0f} %", 100 * row.acceptance),
            row.n_same < 0 ? "-" : fmt::format("{} of {} ({})", row.n_same, n_prompts, row.reference)};
}

std::string summary(const BenchReport & report) {
    return fmt::format("{} prompts of {} tokens together, {} tokens each, {} rounds; medians (min..max over rounds){}",
                       report.n_prompts, report.n_prompt_tokens, report.n_predict, report.n_rounds,
                       report.is_complete ? "" : "; interrupted: fewer rounds than asked for");
}

std::string baseline_text(const BenchBaseline & baseline) {
    return fmt::format("baseline `{}`: {:.2f} s ({:.2f}..{:.2f}), x{} of vanilla's round", baseline.command,
                       baseline.seconds.median, baseline.seconds.low, baseline.seconds.high,
                       range(baseline.total_ratio));
}

json spread_json(const Spread & s) {
    return {{"median", s.median}, {"min", s.low}, {"max", s.high}};
}

/// Text escaped for XML.
std::string escaped(const std::string & text) {
    std::string result;
    for (const char c : text) {
        switch (c) {
            case '&': result += "&amp;"; break;
            case '<': result += "&lt;"; break;
            case '>': result += "&gt;"; break;
            default: result += c;
        }
    }
    return result;
}

}  // namespace

std::string bench_text(const BenchReport & report) {
    std::vector<std::vector<std::string>> table = {headings};
    for (const BenchRow & row : report.rows) table.push_back(cells(row, report.n_prompts));
    std::vector<size_t> widths(headings.size(), 0);
    for (const auto & line : table) {
        for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
    }
    std::string text;
    for (size_t r = 0; r < table.size(); ++r) {
        std::string line;
        for (size_t i = 0; i < table[r].size(); ++i) {
            line += i == 0 ? fmt::format("{:<{}}", table[r][i], widths[i])
                           : fmt::format("  {:>{}}", table[r][i], widths[i]);
        }
        text += fmt::format("{}\n", r == 0 ? styled(stdout, Style::bold, line) : line);
    }
    text += fmt::format("{}\n", summary(report));
    if (report.baseline) text += fmt::format("{}\n", baseline_text(*report.baseline));
    return text;
}

std::string bench_markdown(const BenchReport & report) {
    std::string text;
    for (const std::string & fact : report.facts) text += fmt::format("{}\n", fact);
    text += fmt::format("\n{}.\n\n", summary(report));
    const auto line = [](const std::vector<std::string> & texts) {
        return fmt::format("| {} |\n", fmt::join(texts, " | "));
    };
    text += line(headings) + line(std::vector<std::string>(headings.size(), "---"));
    for (const BenchRow & row : report.rows) text += line(cells(row, report.n_prompts));
    if (report.baseline) text += fmt::format("\n{}\n", baseline_text(*report.baseline));
    return text;
}

json bench_json(const BenchReport & report) {
    json methods = json::array();
    for (const BenchRow & row : report.rows) {
        json method = {{"name", row.name},
                       {"meaning", row.meaning},
                       {"steps_per_second", spread_json(row.steps_per_second)},
                       {"step_time_relative_to_vanilla", spread_json(row.step_ratio)},
                       {"total_time_relative_to_vanilla", spread_json(row.total_ratio)},
                       {"first_token_seconds", spread_json(row.first_token_seconds)},
                       {"cache_bytes", row.cache_bytes}};
        if (row.hesitation_share >= 0) {
            method["hesitation_share"] = row.hesitation_share;
            method["twin_rows_per_step"] = row.twin_rows_per_step;
        }
        if (row.acceptance >= 0) method["acceptance"] = row.acceptance;
        if (row.n_same >= 0) method["same_tokens"] = {{"as", row.reference}, {"prompts", row.n_same}};
        methods.push_back(std::move(method));
    }
    json result = report.context;
    result["methods"] = std::move(methods);
    result["prompts"] = report.n_prompts;
    result["prompt_tokens"] = report.n_prompt_tokens;
    result["tokens_each"] = report.n_predict;
    result["rounds"] = report.n_rounds;
    result["complete"] = report.is_complete;
    if (report.baseline) {
        result["baseline"] = {{"command", report.baseline->command},
                              {"seconds", spread_json(report.baseline->seconds)},
                              {"total_time_relative_to_vanilla", spread_json(report.baseline->total_ratio)}};
    }
    return result;
}

std::string bench_svg(const BenchReport & report) {
    constexpr double row_height = 26;
    constexpr double left = 130;   // where bars begin, after the names
    constexpr double width = 520;  // of the longest bar
    double largest = 1;
    for (const BenchRow & row : report.rows) largest = std::max(largest, row.step_ratio.high);
    // a method that takes 100 times as long would leave no width for the others
    const double limit = std::min(std::ceil(largest), 6.0);
    const auto x = [&](double ratio) { return left + width * std::min(ratio, limit) / limit; };
    const double height = 46 + row_height * static_cast<double>(report.rows.size()) + 24;

    std::string svg = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0f} {:.0f}\" font-family=\"sans-serif\" "
        "font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        "<text x=\"10\" y=\"22\" font-weight=\"bold\">Time of a step relative to vanilla (median, range over rounds)"
        "</text>\n",
        left + width + 90, height);
    for (double tick = 0; tick <= limit; tick += 1) {
        svg += fmt::format(
            "<line x1=\"{0:.1f}\" y1=\"34\" x2=\"{0:.1f}\" y2=\"{1:.1f}\" stroke=\"{2}\"/>"
            "<text x=\"{0:.1f}\" y=\"{3:.1f}\" text-anchor=\"middle\" fill=\"#555\">{4:.0f}</text>\n",
            x(tick), height - 28, tick == 1 ? "#333" : "#ddd", height - 12, tick);
    }
    double y = 40;
    for (const BenchRow & row : report.rows) {
        const double middle = y + row_height / 2;
        svg += fmt::format(
            "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>"
            "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"/>"
            "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#222\" stroke-width=\"1.5\"/>"
            "<text x=\"{:.1f}\" y=\"{:.1f}\" fill=\"#222\">{:.2f}</text>\n",
            left - 8, middle + 4, escaped(row.name), left, y + 4, x(row.step_ratio.median) - left, row_height - 8,
            row.hesitation_share < 0 ? "#9db4c8" : "#d98c2b", x(row.step_ratio.low), middle, x(row.step_ratio.high),
            middle, x(row.step_ratio.high) + 6, middle + 4, row.step_ratio.median);
        y += row_height;
    }
    return svg + "</svg>\n";
}

}  // namespace harp::cli
