// Drafts tokens for the target model to confirm: llama.cpp's speculation (a draft model, or n-gram look-up).
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
    uint64_t accepted = 0;  ///< of these tokens, the confirmed ones
    uint64_t batches = 0;   ///< drafts that were not empty
    double seconds = 0;     ///< spent in drafting, including the draft model's own decoding
};

/// Drafts for the target's sequences. The draft model stays vanilla: only the target hesitates.
class Drafter {
  public:
    /// @param params as read from llama.cpp's flags (--spec-type, -md and related ones)
    /// @return nullptr if they ask for no speculation
    /// @throws Error{invalid_input}    the draft model cannot be loaded, or has another vocabulary
    /// @throws Error{unsupported_call} the target's memory cannot take back rejected tokens (recurrent models)
    [[nodiscard]] static std::unique_ptr<Drafter> make(ForwardPass & target, const common_params & params);
    ~Drafter();

    /// To be called once a prompt was decoded and passed to follow().
    void begin(llama_seq_id sequence, const std::vector<llama_token> & prompt);
    /// At most `n_max` tokens that may follow `tokens` and `last`; possibly none.
    [[nodiscard]] std::vector<llama_token> draft(llama_seq_id sequence, const std::vector<llama_token> & tokens,
                                                 llama_token last, size_t n_max);
    /// Tells the draft model which rows the target has decoded, each of one sequence.
    void follow(const llama_batch & rows);
    /// Says that `n_accepted` tokens of the sequence's latest draft were confirmed, and that it now ends before `end`.
    void accept(llama_seq_id sequence, size_t n_accepted, llama_pos end);
    /// Says that the sequence was cut, and now ends before position `end`.
    void truncate(llama_seq_id sequence, llama_pos end);

    [[nodiscard]] const SpeculationStatistics & statistics() const noexcept { return statistics_; }

  private:
    struct Impl;
    explicit Drafter(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
    SpeculationStatistics statistics_;
};

}  // namespace harp::decoding
