// Refuses, by name, the models and contexts that HARP cannot treat, and checks at creation that it treats this one right.
#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "forward/pass_impl.h"

namespace harp {

namespace {

/// A value of the model file's metadata as text; empty if it is not there.
std::string metadata(const llama_model & model, const std::string & key) {
    std::array<char, 128> value{};
    if (llama_model_meta_val_str(&model, key.c_str(), value.data(), value.size()) < 0) return {};
    return value.data();
}

std::string architecture(const llama_model & model) {
    const std::string name = metadata(model, "general.architecture");
    return name.empty() ? "unknown" : name;
}

[[noreturn]] void refuse(const llama_model & model, const std::string & why) {
    throw Error(ErrorCode::unsupported_model,
                "HARP cannot treat this model (architecture " + architecture(model) + "): " + why);
}

/// Largest difference between two rows of logits, relative to the spread of the first.
double relative_difference(std::span<const float> a, std::span<const float> b) {
    const auto [low, high] = std::minmax_element(a.begin(), a.end());
    double largest = 0;
    for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::fabs(static_cast<double>(a[i]) - b[i]));
    return largest / std::max(1e-6, static_cast<double>(*high) - *low);
}

}  // namespace

void ForwardPass::Impl::refuse_unsupported(const llama_model & model, const llama_context_params & params) const {
    if (llama_model_has_encoder(&model))
        refuse(model, "it has an encoder; only decoder-only language models are supported");
    if (!llama_model_has_decoder(&model)) refuse(model, "it has no decoder");
    if (llama_model_is_diffusion(&model))
        refuse(model, "it is a diffusion model; there is no next-token pass to repeat");
    const bool is_causal = metadata(model, architecture(model) + ".attention.causal") != "false" &&
                           params.attention_type != LLAMA_ATTENTION_TYPE_NON_CAUSAL;
    if (!is_causal) refuse(model, "its attention is not causal; there is no next token to predict");
    if (params.embeddings) refuse(model, "the context is for embeddings (llama_context_params.embeddings)");
    if (n_vocab <= 0) refuse(model, "it has no vocabulary");
    if (params.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT) refuse(model, "the context is for multi-token prediction");
    if (params.n_samplers > 0) {
        throw Error(ErrorCode::unsupported_call,
                    "samplers on the back end (llama_context_params.samplers) would not see the mixed logits");
    }
    const bool has_snapshots = params.n_rs_seq > 0;
    if (has_snapshots && (llama_model_is_recurrent(&model) || llama_model_is_hybrid(&model))) {
        throw Error(ErrorCode::unsupported_call,
                    "snapshots of recurrent state (n_rs_seq) are not supported with HARP on");
    }
}

/// Two decodes of two rows each (one clean, one twin): a twin that is not perturbed must equal the clean stream, one whose
/// embedding is zero must not. Shows that the look-up of embeddings is seen and that changing it has an effect.
void ForwardPass::Impl::self_check() {
    const llama_model & model = *llama_get_model(context.get());
    if (memory == nullptr) refuse(model, "it has no KV cache or recurrent state (embeddings-only)");

    const llama_token bos = llama_vocab_bos(llama_model_get_vocab(&model));
    const llama_token token = bos != LLAMA_TOKEN_NULL ? bos : 0;
    const auto difference = [&](const forward::ReframingHook::Perturb & perturb) {
        const std::array<llama_seq_id, 2> ids{layout.clean(0), layout.twin(0, 0)};
        inner_batch.clear();
        std::vector<forward::ReframingHook::ExpectedRow> expected;
        for (size_t i = 0; i < 2; ++i) {
            inner_batch.add(token, 0, {&ids[i], 1}, true);
            expected.push_back({token, i == 1 ? perturb : forward::ReframingHook::Perturb()});
        }
        hook.expect(std::move(expected));
        const int32_t result = llama_decode(context.get(), inner_batch.view());
        const auto failure = hook.finish();
        if (result == 2) throw Error(ErrorCode::aborted, "the self-check was aborted by the abort callback");
        if (result != 0) refuse(model, "a first decode failed with " + std::to_string(result));
        if (failure) refuse(model, *failure);
        const double value = relative_difference(logits_span(llama_get_logits_ith(context.get(), 0)),
                                                 logits_span(llama_get_logits_ith(context.get(), 1)));
        llama_memory_clear(memory, true);
        return value;
    };

    constexpr double tolerance = 1e-2;  // rounding of a quantised model, relative to the spread of the logits
    const double unperturbed = difference([](std::span<float>) {});
    if (!(unperturbed <= tolerance)) {
        refuse(model, "self-check failed: a twin without perturbation differs from the clean stream by " +
                          std::to_string(unperturbed) +
                          " of the logits' spread (allowed: " + std::to_string(tolerance) + ")");
    }
    const double zeroed = difference([](std::span<float> row) { std::fill(row.begin(), row.end(), 0.0F); });
    if (zeroed == 0.0) refuse(model, "self-check failed: perturbing the token embeddings has no effect");
    inner_batch.clear();
    llama_perf_context_reset(context.get());
}

}  // namespace harp
