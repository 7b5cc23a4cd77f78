// Perturbs the twins' embedding rows inside llama.cpp's graph, between their look-up and the first layer.
//
//   token ids ──► look-up, LoRA ──┐
//   batch.embd ───────────────────┴──► row * factors + noise ──► scaling, layers
//
// The graph calls back for each row, with its sequence id and position (patches/embedding-rows.patch). llama.cpp keeps
// the order of rows within a sequence, whatever micro-batches it makes, so each twin has a queue of expected rows. All
// other rows stay unchanged, bit for bit.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "llama.h"
#include "method/perturbation.h"

namespace harp::forward {

class Reframing {
  public:
    /// Perturbs one row.
    using Perturb = std::function<void(const method::RowChange &)>;

    /// Registers the callback with the context. The Reframing must outlive the context's last decode.
    /// @param with_noise whether the graph can add noise; otherwise it only multiplies by factors
    void install(llama_context & context, bool with_noise);
    [[nodiscard]] bool has_noise() const noexcept { return has_noise_; }

    /// Announces a row of the next llama_decode. @param inner the twin's inner sequence id
    void expect(llama_seq_id inner, llama_pos position, Perturb perturb);
    /// Call it after that llama_decode. @throws whatever a Perturb threw
    /// @return what went wrong (a row did not come, or an unexpected one came), or nullopt
    [[nodiscard]] std::optional<std::string> finish();

  private:
    struct ExpectedRow {
        llama_pos position = 0;
        Perturb perturb;
    };
    struct Queue {
        std::vector<ExpectedRow> rows;
        size_t n_seen = 0;
    };
    static void callback(void * self, const llama_seq_id * ids, int32_t n_ids, llama_pos position, int64_t n_embd,
                         float * factors, float * noise, float * relative_noise);
    void on_row(llama_seq_id inner, llama_pos position, const method::RowChange & change);

    bool has_noise_ = false;
    std::vector<Queue> queues_;  // [inner sequence id]
    std::string failure_;
    std::exception_ptr thrown_;  // by a Perturb; exceptions must not pass through llama.cpp
};

}  // namespace harp::forward
