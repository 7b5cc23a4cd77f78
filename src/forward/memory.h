// What a Sequence asks of a KV cache or recurrent state: the calls of llama_memory, and in what they differ by kind.
//
// An interface, so that Sequence can be tested on a fake of each kind without a model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "llama.h"

namespace harp::forward {

/// | kind | what it cannot do |
/// |---|---|
/// | unified cache | move the cells of one sequence alone, where another one shares them |
/// | a stream a sequence | copy a part of a sequence; share cells |
/// | sliding window, M-RoPE | change positions |
/// | sliding window | go back to a position whose window it has dropped, though remove() says that it did |
/// | recurrent, hybrid | be cut at all, but for all of it |
struct MemoryKind {
    bool shares_cells = false;  ///< copies are marks on the same cells, and may be of a part; else a copy replaces
    bool can_shift = true;      ///< positions can be changed
    bool is_recurrent = false;  ///< has a state that cannot go back (hybrid models too)
    int32_t n_swa = 0;          ///< a token at p attends to positions above p - n_swa in some layers; 0: to all in all
};

/// Ranges as in llama.cpp: [p0, p1), p0 < 0 is 0, p1 < 0 is infinity. Sequence ids are the inner context's.
class Memory {
  public:
    virtual ~Memory() = default;
    [[nodiscard]] virtual const MemoryKind & kind() const = 0;

    /// @return false, with nothing changed, where a part cannot be removed; removing all of a sequence always works
    virtual bool remove(llama_seq_id id, llama_pos p0, llama_pos p1) = 0;
    virtual void copy(llama_seq_id source, llama_seq_id destination, llama_pos p0, llama_pos p1) = 0;
    virtual void add(llama_seq_id id, llama_pos p0, llama_pos p1, llama_pos delta) = 0;
    virtual void divide(llama_seq_id id, llama_pos p0, llama_pos p1, int divisor) = 0;
    /// Smallest and largest position of a sequence; -1 if it is empty.
    [[nodiscard]] virtual llama_pos first(llama_seq_id id) const = 0;
    [[nodiscard]] virtual llama_pos last(llama_seq_id id) const = 0;

    /// Source: llama_state_seq_get_size_ext and its neighbours. load() gives 0 where it cannot.
    [[nodiscard]] virtual size_t saved_size(llama_seq_id id, llama_state_seq_flags flags) = 0;
    virtual size_t save(llama_seq_id id, std::span<uint8_t> to, llama_state_seq_flags flags) = 0;
    virtual size_t load(llama_seq_id id, std::span<const uint8_t> from, llama_state_seq_flags flags) = 0;

  protected:
    Memory() = default;
    Memory(const Memory &) = default;
    Memory & operator=(const Memory &) = default;
};

/// Whether a sequence, cut at `position`, still holds all that a token there attends to.
[[nodiscard]] bool can_continue_at(const Memory & memory, llama_seq_id id, llama_pos position);
/// A sliding window drops what lies behind it, and remove() does not bring it back.
[[nodiscard]] bool holds_window(const Memory & memory, llama_seq_id id, llama_pos position);

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
