// The hook that perturbs twin rows of token embeddings between their look-up and the first layer.
//
//   token ids ──► GET_ROWS(token_embd.weight, inp_tokens) ──► here: twin rows overwritten ──► layers
//
// It is the context's cb_eval (llama.h), chained before a caller's own. Clean rows stay on llama.cpp's token path, bit
// for bit; architectures that scale or extend embeddings do so after it.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

namespace harp::forward {

class ReframingHook {
  public:
    /// Changes one embedding row, [n_embd], in place.
    using Perturb = std::function<void(std::span<float> row)>;

    struct ExpectedRow {
        llama_token token = 0;
        Perturb perturb;  ///< empty for a clean row
    };

    /// Puts the hook in front of the callback that `params` may hold. The hook must outlive the context.
    void install(llama_context_params & params);

    /// Announces the rows of the next llama_decode, in the order of computation. Nothing is intercepted if all are clean.
    void expect(std::vector<ExpectedRow> rows);

    /// To be called after that llama_decode.
    /// @return what went wrong (a twin row was not seen, other tokens were), or nullopt
    [[nodiscard]] std::optional<std::string> finish();

  private:
    static bool callback(ggml_tensor * node, bool ask, void * self);
    bool on_node(ggml_tensor * node, bool ask);
    [[nodiscard]] bool is_token_lookup(const ggml_tensor * node);
    void perturb_rows(ggml_tensor * embeddings);

    ggml_backend_sched_eval_callback callers_callback_ = nullptr;
    void * callers_data_ = nullptr;
    bool caller_asked_ = false;

    bool armed_ = false;  // the batch has twin rows
    std::vector<ExpectedRow> expected_;
    size_t n_seen_ = 0;  // rows of expected_ that have passed
    std::string failure_;
};

}  // namespace harp::forward
