// Numbers and byte strings of a saved state, in this machine's byte order (llama.cpp's states are too).
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "harp/error.h"

namespace harp::forward {

/// Writes into a buffer; without a buffer it only counts bytes.
class Writer {
  public:
    Writer() = default;
    explicit Writer(std::span<uint8_t> to) : to_(to), is_counting_(false) {}

    template <typename T>
    void number(T value) {
        static_assert(std::is_arithmetic_v<T>);
        if (const auto to = room(sizeof(T)); !to.empty()) std::memcpy(to.data(), &value, sizeof(T));
    }
    /// The next n bytes, for the caller to fill; empty when only counting.
    /// @throws Error{invalid_input} if the buffer has no room for them
    std::span<uint8_t> room(size_t n) {
        const size_t at = size_;
        size_ += n;
        if (is_counting_) return {};
        if (size_ > to_.size()) throw Error(ErrorCode::invalid_input, "the buffer is too small for the state");
        return to_.subspan(at, n);
    }
    /// Gives back the last n bytes of room(), which were not needed.
    void give_back(size_t n) { size_ -= n; }
    [[nodiscard]] bool is_counting() const noexcept { return is_counting_; }
    [[nodiscard]] size_t size() const noexcept { return size_; }

  private:
    std::span<uint8_t> to_;
    bool is_counting_ = true;
    size_t size_ = 0;
};

/// Reads what Writer wrote. Every length is checked against the bytes left, so no input can make it read past its end.
/// @throws Error{invalid_state} from all of its functions
class Reader {
  public:
    explicit Reader(std::span<const uint8_t> data) : size_(data.size()), left_(data) {}

    template <typename T>
    T number() {
        T value{};
        std::memcpy(&value, bytes(sizeof(T)).data(), sizeof(T));
        return value;
    }
    std::span<const uint8_t> bytes(uint64_t n) {
        if (n > left_.size()) fail();
        const auto part = left_.first(n);
        left_ = left_.subspan(n);
        return part;
    }
    /// Reads a number of items, of at least `item_size` bytes each.
    size_t count(size_t item_size) {
        const auto n = number<uint64_t>();
        if (n > left_.size() / item_size) fail();
        return n;
    }
    [[nodiscard]] std::span<const uint8_t> rest() const noexcept { return left_; }
    [[nodiscard]] size_t n_read() const noexcept { return size_ - left_.size(); }

  private:
    [[noreturn]] static void fail() { throw Error(ErrorCode::invalid_state, "saved state is truncated or damaged"); }
    size_t size_;
    std::span<const uint8_t> left_;
};

}  // namespace harp::forward
