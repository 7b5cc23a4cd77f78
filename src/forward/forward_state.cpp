// ForwardPass: saving and loading of state.
//
//   magic | version | for each sequence: options that shape its twins, history, draw | blobs of llama.cpp
//
// With HARP off the state is llama.cpp's own, byte for byte.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "forward/pass_impl.h"

namespace harp {

namespace {

constexpr std::array<char, 8> magic = {'H', 'A', 'R', 'P', 'K', 'V', '0', '1'};

class Writer {
  public:
    template <typename T>
    void number(T value) {
        static_assert(std::is_arithmetic_v<T>);
        const auto * bytes = reinterpret_cast<const uint8_t *>(&value);
        data.insert(data.end(), bytes, bytes + sizeof(T));
    }
    void blob(std::span<const uint8_t> bytes) {
        number<uint64_t>(bytes.size());
        data.insert(data.end(), bytes.begin(), bytes.end());
    }
    std::vector<uint8_t> data;
};

/// Reads what Writer wrote. Every length is checked against what is left, so no input reads beyond its end.
class Reader {
  public:
    explicit Reader(std::span<const uint8_t> data) : left_(data) {}
    template <typename T>
    T number() {
        T value{};
        std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
        return value;
    }
    std::span<const uint8_t> blob() { return take(number<uint64_t>()); }
    /// A count of items of at least `item_size` bytes each.
    size_t count(size_t item_size) {
        const auto n = number<uint64_t>();
        if (n > left_.size() / item_size) fail();
        return n;
    }
    void expect_end() const {
        if (!left_.empty()) throw Error(ErrorCode::invalid_state, "saved state has bytes behind its end");
    }

  private:
    [[noreturn]] static void fail() { throw Error(ErrorCode::invalid_state, "saved state is truncated or damaged"); }
    std::span<const uint8_t> take(uint64_t n) {
        if (n > left_.size()) fail();
        const auto part = left_.first(n);
        left_ = left_.subspan(n);
        return part;
    }
    std::span<const uint8_t> left_;
};

void write_header(Writer & out, uint32_t n_sequences, uint32_t n_twins) {
    for (const char c : magic) out.number(c);
    out.number(n_sequences);
    out.number(n_twins);
}

void read_header(Reader & in, uint32_t n_sequences, uint32_t n_twins) {
    for (const char c : magic) {
        if (in.number<char>() != c) throw Error(ErrorCode::invalid_state, "not a saved state of harp");
    }
    const auto found_sequences = in.number<uint32_t>();
    const auto found_twins = in.number<uint32_t>();
    if (found_sequences != n_sequences || found_twins != n_twins) {
        throw Error(ErrorCode::invalid_state, "saved state is of " + std::to_string(found_sequences) +
                                                  " sequences with " + std::to_string(found_twins) +
                                                  " twins each, expected " + std::to_string(n_sequences) + " with " +
                                                  std::to_string(n_twins));
    }
}

constexpr size_t row_size = 3 * sizeof(int32_t) + 2;

void write_sequence(Writer & out, const SequenceState & state) {
    out.number(state.options.seed);
    out.number(state.mask_sequence);
    out.number(static_cast<uint32_t>(state.options.perturbation));
    out.number(state.options.strength);
    out.number(state.options.reframings);
    const auto snapshot = state.history.snapshot();
    out.number<uint64_t>(snapshot.rows.size());
    for (const auto & row : snapshot.rows) {
        out.number(row.token);
        out.number(row.position);
        out.number(row.mask_position);
        out.number<uint8_t>(row.reframed ? 1 : 0);
        out.number<uint8_t>(row.hesitated ? 1 : 0);
    }
    out.number(snapshot.n_twin);
    out.number(snapshot.twin_draw.index);
    out.number(snapshot.twin_draw.length);
    out.number(snapshot.dropped_hesitations);
    out.number<uint8_t>(snapshot.seen_output ? 1 : 0);
    out.number<int32_t>(snapshot.prompt_end.value_or(-1));
}

/// @return false if the saved twins were perturbed by other masks than this sequence's options give
bool read_sequence(Reader & in, SequenceState & state) {
    const bool same_masks = [&] {
        bool same = in.number<uint64_t>() == state.options.seed;
        same = (in.number<uint32_t>() == state.mask_sequence) && same;
        same = (in.number<uint32_t>() == static_cast<uint32_t>(state.options.perturbation)) && same;
        same = (in.number<float>() == state.options.strength) && same;
        return (in.number<uint32_t>() == state.options.reframings) && same;
    }();
    forward::TokenHistory::Snapshot snapshot;
    snapshot.rows.resize(in.count(row_size));
    for (auto & row : snapshot.rows) {
        row.token = in.number<llama_token>();
        row.position = in.number<llama_pos>();
        row.mask_position = in.number<llama_pos>();
        row.reframed = in.number<uint8_t>() != 0;
        row.hesitated = in.number<uint8_t>() != 0;
    }
    snapshot.n_twin = in.number<uint64_t>();
    snapshot.twin_draw.index = in.number<uint32_t>();
    snapshot.twin_draw.length = in.number<uint32_t>();
    snapshot.dropped_hesitations = in.number<uint32_t>();
    snapshot.seen_output = in.number<uint8_t>() != 0;
    if (const auto end = in.number<int32_t>(); end >= 0) snapshot.prompt_end = end;
    state.history.restore(std::move(snapshot));
    return same_masks;
}

}  // namespace

std::vector<uint8_t> ForwardPass::state_get() {
    llama_context * context = impl_->context.get();
    std::vector<uint8_t> inner(llama_state_get_size(context));
    inner.resize(llama_state_get_data(context, inner.data(), inner.size()));
    if (!impl_->enabled()) return inner;
    Writer out;
    write_header(out, impl_->layout.n_sequences, impl_->layout.n_twins);
    for (const SequenceState & sequence : impl_->sequences) write_sequence(out, sequence);
    out.blob(inner);
    return std::move(out.data);
}

void ForwardPass::state_set(std::span<const uint8_t> state) {
    Impl & impl = *impl_;
    const auto set_inner = [&](std::span<const uint8_t> bytes) {
        if (llama_state_set_data(impl.context.get(), bytes.data(), bytes.size()) == 0) {
            throw Error(ErrorCode::invalid_state, "llama.cpp could not read the saved state (its log says why)");
        }
    };
    try {
        if (!impl.enabled()) {
            set_inner(state);
            return;
        }
        Reader in(state);
        read_header(in, impl.layout.n_sequences, impl.layout.n_twins);
        std::vector<bool> same_masks;
        for (SequenceState & sequence : impl.sequences) same_masks.push_back(read_sequence(in, sequence));
        const auto inner = in.blob();
        in.expect_end();
        set_inner(inner);
        for (size_t s = 0; s < same_masks.size(); ++s) {
            // which cells the twins share with the clean stream is not saved
            const auto & history = impl.sequences[s].history;
            const bool may_share =
                impl.split_policy != forward::SplitPolicy::equal_sequential && history.clean_prefix() > 0;
            if (!same_masks[s] || may_share) impl.truncate_twins(static_cast<llama_seq_id>(s), 0);
        }
        if (const std::string text = check_invariant(); !text.empty()) throw Error(ErrorCode::invalid_state, text);
    } catch (const Error &) {
        memory_clear(true);
        throw;
    }
    impl.outputs.clear();
}

std::vector<uint8_t> ForwardPass::state_seq_get(llama_seq_id sequence, llama_state_seq_flags flags) {
    Impl & impl = *impl_;
    const auto inner_state = [&](llama_seq_id inner) {
        std::vector<uint8_t> bytes(llama_state_seq_get_size_ext(impl.context.get(), inner, flags));
        bytes.resize(llama_state_seq_get_data_ext(impl.context.get(), bytes.data(), bytes.size(), inner, flags));
        return bytes;
    };
    if (!impl.enabled()) return inner_state(sequence);
    Writer out;
    write_header(out, 1, impl.layout.n_twins);
    write_sequence(out, impl.state(sequence));
    out.blob(inner_state(impl.layout.clean(sequence)));
    for (uint32_t r = 0; r < impl.layout.n_twins; ++r) out.blob(inner_state(impl.layout.twin(sequence, r)));
    return std::move(out.data);
}

void ForwardPass::state_seq_set(std::span<const uint8_t> state, llama_seq_id sequence, llama_state_seq_flags flags) {
    Impl & impl = *impl_;
    const auto set_inner = [&](std::span<const uint8_t> bytes, llama_seq_id inner) {
        if (llama_state_seq_set_data_ext(impl.context.get(), bytes.data(), bytes.size(), inner, flags) == 0) {
            throw Error(ErrorCode::invalid_state, "llama.cpp could not read the saved sequence (its log says why)");
        }
    };
    try {
        if (!impl.enabled()) {
            set_inner(state, sequence);
            return;
        }
        Reader in(state);
        read_header(in, 1, impl.layout.n_twins);
        const bool same_masks = read_sequence(in, impl.state(sequence));
        set_inner(in.blob(), impl.layout.clean(sequence));
        for (uint32_t r = 0; r < impl.layout.n_twins; ++r) set_inner(in.blob(), impl.layout.twin(sequence, r));
        in.expect_end();
        if (!same_masks) impl.truncate_twins(sequence, 0);
        const bool is_partial =
            (flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) != 0;  // the rest is still the caller's to trim
        const std::string text = is_partial ? "" : check_invariant();
        if (!text.empty()) throw Error(ErrorCode::invalid_state, text);
    } catch (const Error &) {
        memory_seq_rm(sequence, -1, -1);
        if (impl.enabled()) {
            impl.empty_twins(sequence);
            impl.state(sequence).history.clear();
        }
        throw;
    }
}

}  // namespace harp
