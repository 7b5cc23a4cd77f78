// Proposes tokens that the target model may confirm: llama.cpp's speculation (a draft model, look-up of n-grams).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "harp/forward_pass.h"

struct common_params;

namespace harp::decoding {

/// Whether llama.cpp's flags ask for speculation (--spec-type, -md).
[[nodiscard]] bool asks_for_speculation(const common_params & params);

struct SpeculationStatistics {
    uint64_t drafted = 0;   ///< tokens proposed and decoded by the target
    uint64_t accepted = 0;  ///< of these, confirmed
    uint64_t batches = 0;   ///< target batches with a draft in them
    double seconds = 0;     ///< in drafting, the draft model's own decoding included
};

/// The draft side of the target's sequences. It stays vanilla: only the target hesitates.
class Drafter {
  public:
    /// @param params as from llama.cpp's flags: --spec-type, -md and theirs
    /// @return nullptr if they ask for no speculation
    /// @throws Error{invalid_input}    the draft model cannot be loaded, or has another vocabulary
    /// @throws Error{unsupported_call} the target's memory cannot take back rejected tokens (recurrent models)
    [[nodiscard]] static std::unique_ptr<Drafter> make(ForwardPass & target, const common_params & params);
    ~Drafter();

    /// After the prompt was decoded, and followed.
    void begin(llama_seq_id sequence, const std::vector<llama_token> & prompt);
    /// At most `n_max` tokens that may follow `tokens` and then `last`; possibly none.
    [[nodiscard]] std::vector<llama_token> draft(llama_seq_id sequence, const std::vector<llama_token> & tokens,
                                                 llama_token last, size_t n_max);
    /// The target has decoded these rows, each of one sequence.
    void follow(const llama_batch & rows);
    /// `n_accepted` tokens of the sequence's latest draft were confirmed, and it now ends before position `end`.
    void accept(llama_seq_id sequence, size_t n_accepted, llama_pos end);
    /// The sequence was cut: it now ends before position `end`.
    void truncate(llama_seq_id sequence, llama_pos end);

    [[nodiscard]] const SpeculationStatistics & statistics() const noexcept { return statistics_; }

  private:
    struct Impl;
    explicit Drafter(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
    SpeculationStatistics statistics_;
};

}  // namespace harp::decoding
