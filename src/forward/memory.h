// What a Sequence needs from a KV cache or recurrent state: the calls of llama_memory, and how the kinds of memory
// differ.
//
// An interface, so that Sequence can be tested without a model, on a fake of each kind.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "llama.h"

namespace harp::forward {

/// | kind | what it cannot do |
/// |---|---|
/// | unified cache | move the cells of one sequence only, if another one shares them |
/// | a stream for each sequence | copy part of a sequence; share cells |
/// | sliding window, M-RoPE | change positions |
/// | sliding window | go back to a position whose window it has dropped, though remove() returns true |
/// | recurrent, hybrid | remove part of a sequence |
struct MemoryKind {
    bool shares_cells = false;  ///< a copy marks the same cells, and can be of a part; else it replaces
    bool can_shift = true;      ///< positions can be changed
    bool is_recurrent = false;  ///< has state that cannot go back (hybrid models too)
    int32_t n_swa = 0;          ///< in some layers p attends only to positions above p - n_swa; 0: to all
};

/// Ranges as in llama.cpp: [p0, p1), p0 < 0 is 0, p1 < 0 is infinity. Sequence ids are the inner context's.
class Memory {
  public:
    virtual ~Memory() = default;
    [[nodiscard]] virtual const MemoryKind & kind() const = 0;

    /// @return false, changing nothing, if this part cannot be removed; a whole sequence can always be removed
    virtual bool remove(llama_seq_id id, llama_pos p0, llama_pos p1) = 0;
    virtual void copy(llama_seq_id source, llama_seq_id destination, llama_pos p0, llama_pos p1) = 0;
    virtual void add(llama_seq_id id, llama_pos p0, llama_pos p1, llama_pos delta) = 0;
    virtual void divide(llama_seq_id id, llama_pos p0, llama_pos p1, int divisor) = 0;
    /// Smallest and largest position of a sequence; -1 if it is empty.
    [[nodiscard]] virtual llama_pos first(llama_seq_id id) const = 0;
    [[nodiscard]] virtual llama_pos last(llama_seq_id id) const = 0;

    /// Source: llama_state_seq_get_size_ext and its relatives. load() returns 0 if it fails.
    [[nodiscard]] virtual size_t saved_size(llama_seq_id id, llama_state_seq_flags flags) = 0;
    virtual size_t save(llama_seq_id id, std::span<uint8_t> to, llama_state_seq_flags flags) = 0;
    virtual size_t load(llama_seq_id id, std::span<const uint8_t> from, llama_state_seq_flags flags) = 0;

  protected:
    Memory() = default;
    Memory(const Memory &) = default;
    Memory & operator=(const Memory &) = default;
};

/// The first position that a token at `position` attends to in every layer.
[[nodiscard]] llama_pos window_begin(const MemoryKind & kind, llama_pos position);
/// Whether a sequence, cut at `position`, would still hold every row that a token there attends to.
/// @param first_row position of the sequence's first row from window_begin() on
[[nodiscard]] bool can_continue_at(const Memory & memory, llama_seq_id id, llama_pos position, llama_pos first_row);
/// Whether the sliding window before `position` is still there. Rows that left it are gone; remove() does not bring
/// them back.
[[nodiscard]] bool holds_window(const Memory & memory, llama_seq_id id, llama_pos position, llama_pos first_row);

/// The memory of a llama_context.
class LlamaMemory final : public Memory {
  public:
    LlamaMemory() = default;
    LlamaMemory(llama_context & context, bool is_unified);

    [[nodiscard]] const MemoryKind & kind() const override { return kind_; }
    bool remove(llama_seq_id id, llama_pos p0, llama_pos p1) override;
    void copy(llama_seq_id source, llama_seq_id destination, llama_pos p0, llama_pos p1) override;
    void add(llama_seq_id id, llama_pos p0, llama_pos p1, llama_pos delta) override;
    void divide(llama_seq_id id, llama_pos p0, llama_pos p1, int divisor) override;
    [[nodiscard]] llama_pos first(llama_seq_id id) const override;
    [[nodiscard]] llama_pos last(llama_seq_id id) const override;
    [[nodiscard]] size_t saved_size(llama_seq_id id, llama_state_seq_flags flags) override;
    size_t save(llama_seq_id id, std::span<uint8_t> to, llama_state_seq_flags flags) override;
    size_t load(llama_seq_id id, std::span<const uint8_t> from, llama_state_seq_flags flags) override;

  private:
    llama_context * context_ = nullptr;
    llama_memory_t memory_ = nullptr;
    MemoryKind kind_;
};

}  // namespace harp::forward
