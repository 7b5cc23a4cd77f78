#include "model/report.h"

#include <fmt/format.h>

#include <array>
#include <filesystem>

#include "build-info.h"
#include "flags/harp_flags.h"
#include "model/content_hash.h"

namespace harp::cli {

using nlohmann::json;

json build_json() {
    json build = {{"harp", HARP_VERSION},
                  {"llama.cpp", llama_version()},
                  {"compiler", llama_compiler()},
                  {"system", llama_print_system_info()}};
    if (!kernels_in_use().empty()) build["kernels"] = kernels_in_use();
    return build;
}

json model_json(const llama_model & model, const std::string & path) {
    std::array<char, 256> description{};
    llama_model_desc(&model, description.data(), description.size());
    return {{"file", std::filesystem::path(path).filename().string()},
            {"description", description.data()},
            {"parameters", llama_model_n_params(&model)},
            {"bytes", llama_model_size(&model)},
            {"fingerprint", model_fingerprint(path)}};
}

json token_json(llama_token id, const std::string & text, const StepRecord & record) {
    return {{"id", id},
            {"text", text},
            {"entropy", record.entropy},
            {"ratio", record.ratio},
            {"hesitated", record.hesitated}};
}

json statistics_json(const Statistics & s) {
    const double share = s.steps > 0 ? static_cast<double>(s.hesitations) / static_cast<double>(s.steps) : 0;
    return {{"steps", s.steps},
            {"hesitations", s.hesitations},
            {"hesitation_share", share},
            {"clean_rows", s.clean_rows},
            {"second_pass_rows", s.second_pass_rows},
            {"fused_steps", s.fused_steps},
            {"catch_ups", s.catch_ups},
            {"total_seconds", s.total_seconds},
            {"llama_seconds", s.llama_seconds},
            {"second_pass_seconds", s.second_pass_seconds}};
}

std::string schedule_text(const ForwardPass & pass, const Options & options) {
    if (options.schedule != Schedule::automatic) return get_option(options, "schedule");
    const ScheduleReport report = pass.schedule_report();
    const char * chosen = report.chosen == Schedule::fused ? "fused" : "lazy";
    if (report.fused_cost == 0 || report.lazy_cost == 0)
        return fmt::format("auto: {} (too few steps to compare)", chosen);
    return fmt::format("auto: {} (c(2) = {:.2f}; a step costs {:.2f} fused, {:.2f} lazy)", chosen, report.cost_of_two,
                       report.fused_cost, report.lazy_cost);
}

std::string hesitation_text(const ForwardPass & pass, const std::optional<Options> & options) {
    if (!options) return {};
    const Statistics & s = pass.statistics();
    const auto percent = [](double part, double whole) { return whole > 0 ? 100.0 * part / whole : 0.0; };
    return fmt::format(
        "hesitated at {} of {} steps ({:.0f} %); second pass {:.2f} s ({:.0f} % of {:.2f} s); schedule {}\n",
        s.hesitations, s.steps, percent(static_cast<double>(s.hesitations), static_cast<double>(s.steps)),
        s.second_pass_seconds, percent(s.second_pass_seconds, s.total_seconds), s.total_seconds,
        schedule_text(pass, *options));
}

std::string speculation_text(const decoding::Drafter * drafter) {
    if (drafter == nullptr) return {};
    const decoding::SpeculationStatistics & s = drafter->statistics();
    return fmt::format(
        "speculation: {} of {} drafted tokens accepted ({:.0f} %) in {} batches; drafting took {:.2f} s\n", s.accepted,
        s.drafted, s.drafted > 0 ? 100.0 * static_cast<double>(s.accepted) / static_cast<double>(s.drafted) : 0.0,
        s.batches, s.seconds);
}

json speculation_json(const decoding::Drafter * drafter) {
    if (drafter == nullptr) return nullptr;
    const decoding::SpeculationStatistics & s = drafter->statistics();
    return {{"drafted", s.drafted}, {"accepted", s.accepted}, {"batches", s.batches}, {"seconds", s.seconds}};
}

std::string dump(const json & value, int indent) {
    return value.dump(indent, ' ', /*ensure_ascii=*/false, json::error_handler_t::replace);
}

}  // namespace harp::cli
