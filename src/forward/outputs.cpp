#include "forward/outputs.h"

#include <algorithm>
#include <utility>

namespace harp::forward {

void Outputs::clear(size_t n_vocab) {
    rows_.clear();
    in_llama_buffer_.clear();
    n_vocab_ = n_vocab;
    are_kept_ = false;
}

void Outputs::add(Output output, float * in_llama_buffer) {
    rows_.push_back(std::move(output));
    in_llama_buffer_.push_back(in_llama_buffer);
}

void Outputs::keep() {
    if (std::exchange(are_kept_, true)) return;
    kept_.resize(rows_.size() * n_vocab_);
    for (size_t i = 0; i < rows_.size(); ++i) std::copy_n(in_llama_buffer_[i], n_vocab_, kept_.data() + i * n_vocab_);
}

Output * Outputs::find(int32_t i) {
    if (i < 0) {
        const auto from_end = static_cast<size_t>(-static_cast<int64_t>(i));
        return from_end <= rows_.size() ? &rows_[rows_.size() - from_end] : nullptr;
    }
    const auto it = std::lower_bound(rows_.begin(), rows_.end(), i,
                                     [](const Output & output, int32_t row) { return output.row < row; });
    return it != rows_.end() && it->row == i ? &*it : nullptr;
}

std::span<float> Outputs::logits(const Output & output) {
    const auto i = static_cast<size_t>(&output - rows_.data());
    return {are_kept_ ? kept_.data() + i * n_vocab_ : in_llama_buffer_[i], n_vocab_};
}

float * Outputs::all_logits() {
    keep();
    return kept_.data();
}

}  // namespace harp::forward
