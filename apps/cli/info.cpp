// harp info: the model, what HARP can do with it, the effective options and the build.
#include <fmt/format.h>

#include "commands.h"
#include "flags/terminal.h"
#include "model/loaded_model.h"
#include "model/report.h"

namespace harp::cli {

using nlohmann::json;

int info_command(int argc, char ** argv) {
    CommandLine line(
        "info", "Shows the model, whether HARP works with it (by a self-check), the options in effect and the build.",
        "harp info -m model.gguf --json");
    bool as_json = false;
    line.app.add_flag("--json", as_json, "print one JSON object");
    line.harp.add_to(line.app);
    common_params params;
    if (const auto code = line.parse(argc, argv, params)) return *code;
    const auto options = line.harp.options();
    line.harp.refuse_negative_prompt("info");
    line.harp.refuse_n_ctx_twin("info");
    if (params.n_ctx == 0) params.n_ctx = 512;  // enough for the self-check

    std::string refusal;
    std::optional<LoadedModel> loaded;
    try {
        loaded.emplace(params, options);
    } catch (const Error & error) {
        if (error.code() != ErrorCode::unsupported_model) throw;
        refusal = error.what();
        loaded.emplace(params, std::nullopt);
    }
    const llama_model & model = loaded->model();
    const json build = build_json();
    json model_data = model_json(model, params.model.path);
    model_data["vocabulary"] = llama_vocab_n_tokens(&loaded->vocab());
    model_data["embedding"] = llama_model_n_embd(&model);
    model_data["layers"] = llama_model_n_layer(&model);
    model_data["trained_context"] = llama_model_n_ctx_train(&model);
    model_data["chat_template"] = loaded->has_chat_template();
    const json output = {
        {"model", model_data},
        {"harp", {{"supported", refusal.empty()}, {"refusal", refusal}, {"options", options_json(options)}}},
        {"build", build}};
    if (as_json) {
        write_out(dump(output, 2) + "\n");
        return exit_ok;
    }
    std::string text = "model\n";
    for (const auto & [key, value] : model_data.items()) {
        text += fmt::format("  {:<16} {}\n", key, value.is_string() ? value.get<std::string>() : value.dump());
    }
    text += fmt::format("HARP\n  {:<16} {}\n", "supported",
                        refusal.empty() ? (options ? "yes, the self-check passed" : "switched off") : "no: " + refusal);
    for (const OptionInfo & info : option_table()) {
        if (!options) break;
        text += fmt::format("  {:<16} {:<10} {}\n", info.name, get_option(*options, info.name), info.meaning);
    }
    text += "build\n";
    for (const auto & [key, value] : build.items()) text += fmt::format("  {:<16} {}\n", key, value.get<std::string>());
    write_out(text);
    return exit_ok;
}

}  // namespace harp::cli
