#include "forward/reframing_hook.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "ggml.h"

namespace harp::forward {

namespace {

/// Name of the input without the prefix and suffix that the scheduler gives to its copies ("CPU#inp_tokens#0").
bool is_token_input(const ggml_tensor * tensor) {
    const std::string_view name = tensor != nullptr ? tensor->name : "";
    return name == "inp_tokens" || name.find("#inp_tokens#") != std::string_view::npos;
}

}  // namespace

void ReframingHook::install(llama_context_params & params) {
    callers_callback_ = params.cb_eval;
    callers_data_ = params.cb_eval_user_data;
    params.cb_eval = &ReframingHook::callback;
    params.cb_eval_user_data = this;
}

void ReframingHook::expect(std::vector<ExpectedRow> rows) {
    expected_ = std::move(rows);
    n_seen_ = 0;
    failure_.clear();
    armed_ = std::any_of(expected_.begin(), expected_.end(), [](const ExpectedRow & row) { return bool(row.perturb); });
}

std::optional<std::string> ReframingHook::finish() {
    const bool was_armed = std::exchange(armed_, false);
    if (!failure_.empty()) return failure_;
    if (was_armed && n_seen_ != expected_.size()) {
        return "the look-up of token embeddings was seen for " + std::to_string(n_seen_) + " of " +
               std::to_string(expected_.size()) + " rows";
    }
    return std::nullopt;
}

bool ReframingHook::callback(ggml_tensor * node, bool ask, void * self) {
    return static_cast<ReframingHook *>(self)->on_node(node, ask);
}

bool ReframingHook::on_node(ggml_tensor * node, bool ask) {
    const bool ours = armed_ && is_token_lookup(node);
    if (ask) {
        caller_asked_ = callers_callback_ != nullptr && callers_callback_(node, true, callers_data_);
        return ours || caller_asked_;
    }
    if (ours) perturb_rows(node);
    return !caller_asked_ || callers_callback_(node, false, callers_data_);
}

bool ReframingHook::is_token_lookup(const ggml_tensor * node) {
    if (node->op != GGML_OP_GET_ROWS || !is_token_input(node->src[1])) return false;
    const std::string_view table = node->src[0]->name;
    if (table == "token_embd.weight") return true;
    // A LoRA on the embeddings is added after the look-up: perturbing the look-up alone would leave its part whole.
    if (table.find("token_embd.weight") != std::string_view::npos && table.find("lora") != std::string_view::npos) {
        failure_ = "a LoRA adapter changes the token embeddings (" + std::string(table) +
                   "), which HARP does not support; remove that adapter or switch HARP off";
    }
    return false;
}

void ReframingHook::perturb_rows(ggml_tensor * embeddings) {
    const auto n_embd = static_cast<size_t>(embeddings->ne[0]);
    const auto n_rows = static_cast<size_t>(embeddings->ne[1]);
    if (embeddings->type != GGML_TYPE_F32 || n_seen_ + n_rows > expected_.size()) {
        failure_ = "unexpected shape or type of the token embeddings";
        return;
    }
    std::vector<llama_token> tokens(n_rows);
    ggml_backend_tensor_get(embeddings->src[1], tokens.data(), 0, n_rows * sizeof(llama_token));

    std::vector<float> row(n_embd);
    for (size_t i = 0; i < n_rows; ++i) {
        const ExpectedRow & expected = expected_[n_seen_ + i];
        if (tokens[i] != expected.token) {
            failure_ = "llama.cpp computed the rows of a batch in another order than expected";
            return;
        }
        if (!expected.perturb) continue;
        const size_t offset = i * embeddings->nb[1];
        ggml_backend_tensor_get(embeddings, row.data(), offset, n_embd * sizeof(float));
        expected.perturb(row);
        ggml_backend_tensor_set(embeddings, row.data(), offset, n_embd * sizeof(float));
    }
    n_seen_ += n_rows;
}

}  // namespace harp::forward
