#include "forward/model_kind.h"

#include <array>

namespace harp::forward {

std::string metadata(const llama_model & model, const std::string & key) {
    std::array<char, 128> value{};
    if (llama_model_meta_val_str(&model, key.c_str(), value.data(), value.size()) < 0) return {};
    return value.data();
}

std::string architecture(const llama_model & model) {
    const std::string name = metadata(model, "general.architecture");
    return name.empty() ? "unknown" : name;
}

std::optional<std::string> why_no_next_token(const llama_model & model) {
    if (llama_model_has_encoder(&model)) return "it has an encoder";
    if (!llama_model_has_decoder(&model)) return "it has no decoder";
    if (llama_model_is_diffusion(&model)) return "it is a diffusion model";
    if (metadata(model, architecture(model) + ".attention.causal") == "false") return "its attention is not causal";
    return std::nullopt;
}

}  // namespace harp::forward
