// Refuses models and contexts that HARP cannot be used with, naming the reason; tests at creation that HARP works with
// this one.
#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "forward/model_kind.h"
#include "forward/pass_impl.h"

namespace harp {

namespace {

[[noreturn]] void refuse(const llama_model & model, const std::string & why) {
    throw Error(ErrorCode::unsupported_model,
                "HARP cannot be used with this model (architecture " + forward::architecture(model) + "): " + why);
}

/// Largest difference between two rows of logits, relative to the range of the first; NaN if any value is not a number.
double relative_difference(std::span<const float> a, std::span<const float> b) {
    const auto [low, high] = std::minmax_element(a.begin(), a.end());
    double largest = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        const double difference = std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
        if (!(difference <= largest)) largest = difference;
        if (std::isnan(largest)) return largest;
    }
    return largest / std::max(1e-6, static_cast<double>(*high) - *low);
}

}  // namespace

void ForwardPass::Impl::refuse_unsupported(const llama_model & model, const llama_context_params & params) const {
    if (const auto why = forward::why_no_next_token(model)) refuse(model, *why + "; it does not predict a next token");
    if (params.attention_type == LLAMA_ATTENTION_TYPE_NON_CAUSAL)
        refuse(model, "the context's attention is not causal (llama_context_params.attention_type)");
    if (params.embeddings) refuse(model, "the context is for embeddings (llama_context_params.embeddings)");
    if (n_vocab <= 0) refuse(model, "it has no vocabulary");
    for (const char * key : {".embedding_length_per_layer_input", ".ple.layers"}) {
        const std::string name = forward::architecture(model) + key;
        const std::string value = forward::metadata(model, name);
        if (!value.empty() && value != "0") {
            refuse(model, "its layers look up token embeddings of their own (" + name + " is " + value +
                              "), which would stay as they are");
        }
    }
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

/// Decodes a few rows in a clean stream and in a twin, twice. A twin that is not perturbed must give the clean logits;
/// one whose embeddings are all zero must not. So the look-up of embeddings is seen, and changing embeddings has an
/// effect.
void ForwardPass::Impl::self_check() {
    const llama_model & model = *llama_get_model(context.get());
    if (llama_get_memory(context.get()) == nullptr)
        refuse(model, "it has no KV cache or recurrent state (embeddings-only)");

    // several tokens, because the embedding of one may be zero
    const std::array<llama_token, 4> tokens = {std::max(0, llama_vocab_bos(llama_model_get_vocab(&model))), n_vocab / 4,
                                               n_vocab / 2, n_vocab - n_vocab / 4 - 1};
    const size_t n_rows = std::clamp<size_t>(llama_n_batch(context.get()) / 2, 1, tokens.size());
    const auto difference = [&](const forward::Reframing::Perturb & perturb) {
        forward::BatchRows batch;
        for (const llama_seq_id id : {layout.clean(0), layout.twin(0, 0)}) {
            for (size_t i = 0; i < n_rows; ++i) {
                const auto position = static_cast<llama_pos>(i);
                batch.add(tokens[i], position, {&id, 1}, i + 1 == n_rows);
                if (id != layout.clean(0)) reframing.expect(id, position, perturb);
            }
        }
        const int32_t result = llama_decode(context.get(), batch.view());
        const auto failure = reframing.finish();
        if (result == 2) throw Error(ErrorCode::aborted, "the self-check was aborted by the abort callback");
        if (result != 0) refuse(model, "a first decode failed with " + std::to_string(result));
        if (failure) refuse(model, *failure);
        const auto last = static_cast<int32_t>(n_rows) - 1;
        const double value = relative_difference(inner_logits(last), inner_logits(last + static_cast<int32_t>(n_rows)));
        llama_memory_clear(llama_get_memory(context.get()), true);
        return value;
    };

    constexpr double tolerance = 1e-2;  // for the rounding of a quantised model, relative to the range of the logits
    const double unperturbed = difference([](const method::RowChange &) {});
    if (!(unperturbed <= tolerance)) {
        refuse(model, "self-check failed: a twin without perturbation differs from the clean stream by " +
                          std::to_string(unperturbed) +
                          " of the logits' spread (allowed: " + std::to_string(tolerance) + ")");
    }
    const double zeroed = difference(
        [](const method::RowChange & change) { std::fill(change.factors.begin(), change.factors.end(), 0.0F); });
    if (zeroed == 0.0) refuse(model, "self-check failed: perturbing the token embeddings has no effect");
    llama_perf_context_reset(context.get());
}

}  // namespace harp
