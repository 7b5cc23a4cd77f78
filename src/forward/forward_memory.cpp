// ForwardPass: operations of memory and state. With HARP off these are llama.cpp's own.
//
//   whole     magic | numbers of sequences and twins | order of inner ids | rows of each sequence | llama.cpp's state of all of them
//   sequence  magic | 1, number of twins | rows | llama.cpp's states of the clean stream and of each twin
#include <array>

#include "forward/pass_impl.h"

namespace harp {

using forward::Reader;
using forward::Sequence;
using forward::Writer;

namespace {

constexpr std::array<char, 8> magic = {'H', 'A', 'R', 'P', 'K', 'V', '0', '4'};

void write_header(Writer & out, uint32_t n_sequences, uint32_t n_twins) {
    for (const char c : magic) out.number(c);
    out.number(n_sequences);
    out.number(n_twins);
}

void read_header(Reader & in, uint32_t n_sequences, uint32_t n_twins) {
    for (const char c : magic) {
        if (in.number<char>() != c) throw Error(ErrorCode::invalid_state, "not a saved state of this version of harp");
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

void check_loaded(size_t n_bytes) {
    if (n_bytes == 0) {
        throw Error(ErrorCode::invalid_state, "llama.cpp could not read the saved state (its log says why)");
    }
}

template <typename Write>
size_t size_of(const Write & write) {
    Writer counting;
    write(counting);
    return counting.size();
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Memory

void ForwardPass::memory_clear(bool data) {
    llama_memory_clear(llama_get_memory(impl_->context.get()), data);
    for (Sequence & sequence : impl_->sequences) sequence.forget();
}

bool ForwardPass::memory_seq_rm(llama_seq_id sequence, llama_pos p0, llama_pos p1) {
    Impl & impl = *impl_;
    if (sequence == -1 && impl.enabled()) {  // all of them
        bool all = true;
        for (uint32_t s = 0; s < impl.layout.n_sequences; ++s) {
            all = memory_seq_rm(static_cast<llama_seq_id>(s), p0, p1) && all;
        }
        return all;
    }
    if (sequence != -1) impl.check_id(sequence);
    if (!impl.enabled()) return llama_memory_seq_rm(llama_get_memory(impl.context.get()), sequence, p0, p1);
    Sequence & cut = impl.sequence(sequence);
    // Rows in the middle are removed. The clean rows after them attended to them, so the twins' pending rows must too.
    //   clean   t0 t1 t2 t3 t4 t5      seq_rm of t1 t2
    //   twin    t0 t1 t2 t3 -> t4 t5   decoded while t1 t2 are still there
    const bool is_middle = p1 >= 0 && p1 < cut.next_position();
    if (is_middle && cut.n_twin() > 0 && has_masks(cut.options().view) && cut.due_draw(cut.size()) == cut.twin_draw())
        impl.complete_twins(sequence);
    return cut.remove(p0, p1);
}

void ForwardPass::memory_seq_cp(llama_seq_id source, llama_seq_id destination, llama_pos p0, llama_pos p1) {
    Impl & impl = *impl_;
    impl.check_id(source);
    impl.check_id(destination);
    if (!impl.enabled()) {
        llama_memory_seq_cp(llama_get_memory(impl.context.get()), source, destination, p0, p1);
        return;
    }
    impl.sequence(destination).copy_from(impl.sequence(source), p0, p1);
}

void ForwardPass::memory_seq_keep(llama_seq_id sequence) {
    Impl & impl = *impl_;
    impl.check_id(sequence);
    if (!impl.enabled()) {
        llama_memory_seq_keep(llama_get_memory(impl.context.get()), sequence);
        return;
    }
    for (uint32_t s = 0; s < impl.layout.n_sequences; ++s) {
        if (static_cast<llama_seq_id>(s) != sequence) impl.sequences[s].remove(-1, -1);
    }
}

/// Before its cells move, a sequence that shares cells gets copies of them. They fit if all held rows fit without
/// sharing.
void ForwardPass::Impl::check_room_to_move(const Sequence & moved) const {
    if (!moved.may_share_cells() || !memory.kind().shares_cells) return;  // a recurrent state is one cell
    size_t n_held = 0;
    for (const Sequence & each : sequences) n_held += each.n_held();
    if (n_held <= llama_n_ctx(context.get())) return;
    throw Error(
        ErrorCode::context_full,
        "positions of a sequence that shares cells with another one cannot move: no room for a copy of them; use a "
        "larger context (n_ctx)");
}

void ForwardPass::memory_seq_add(llama_seq_id sequence, llama_pos p0, llama_pos p1, llama_pos delta) {
    Impl & impl = *impl_;
    impl.check_id(sequence);
    if (!impl.enabled()) {
        llama_memory_seq_add(llama_get_memory(impl.context.get()), sequence, p0, p1, delta);
        return;
    }
    impl.check_room_to_move(impl.sequence(sequence));
    impl.sequence(sequence).add(p0, p1, delta);
}

void ForwardPass::memory_seq_div(llama_seq_id sequence, llama_pos p0, llama_pos p1, int divisor) {
    Impl & impl = *impl_;
    impl.check_id(sequence);
    if (divisor <= 0) {
        throw Error(ErrorCode::invalid_input, "memory_seq_div: divisor " + std::to_string(divisor) + "; allowed: 1..");
    }
    if (!impl.enabled()) {
        llama_memory_seq_div(llama_get_memory(impl.context.get()), sequence, p0, p1, divisor);
        return;
    }
    impl.check_room_to_move(impl.sequence(sequence));
    impl.sequence(sequence).divide(p0, p1, divisor);
}

llama_pos ForwardPass::memory_seq_pos_min(llama_seq_id sequence) const {
    impl_->check_id(sequence);
    return llama_memory_seq_pos_min(llama_get_memory(impl_->context.get()), impl_->layout.clean(sequence));
}

llama_pos ForwardPass::memory_seq_pos_max(llama_seq_id sequence) const {
    impl_->check_id(sequence);
    return llama_memory_seq_pos_max(llama_get_memory(impl_->context.get()), impl_->layout.clean(sequence));
}

bool ForwardPass::can_continue_at(llama_seq_id sequence, llama_pos position) const {
    impl_->check_id(sequence);
    if (impl_->enabled()) return impl_->sequence(sequence).can_continue_at(position);
    const forward::LlamaMemory memory(*impl_->context, false);
    return forward::can_continue_at(memory, sequence, position, forward::window_begin(memory.kind(), position));
}

std::string ForwardPass::check_invariant() const {
    for (const Sequence & sequence : impl_->sequences) {
        if (std::string text = sequence.disagreement(); !text.empty()) return text;
    }
    return {};
}

// ---------------------------------------------------------------------------------------------------------------------
// State

void ForwardPass::Impl::write_state(Writer & out) {
    if (enabled()) {
        write_header(out, layout.n_sequences, layout.n_twins);
        out.number<uint8_t>(layout.is_interleaved ? 1 : 0);
        for (const Sequence & each : sequences) each.save_rows(out);
    }
    const size_t n = llama_state_get_size(context.get());
    const std::span<uint8_t> room = out.room(n);
    if (out.is_counting()) return;
    const size_t n_written = llama_state_get_data(context.get(), room.data(), n);
    if (n_written == 0) throw Error(ErrorCode::invalid_state, "llama.cpp could not save its state (its log says why)");
    out.give_back(n - n_written);
}

void ForwardPass::Impl::write_state(Writer & out, llama_seq_id id, llama_state_seq_flags flags) {
    check_id(id);
    if (enabled()) {
        write_header(out, 1, layout.n_twins);
        sequence(id).save_with_memory(out, flags);
        return;
    }
    const size_t n = llama_state_seq_get_size_ext(context.get(), id, flags);
    const std::span<uint8_t> room = out.room(n);
    if (!out.is_counting()) out.give_back(n - llama_state_seq_get_data_ext(context.get(), room.data(), n, id, flags));
}

size_t ForwardPass::state_size() {
    return size_of([this](Writer & out) { impl_->write_state(out); });
}

size_t ForwardPass::state_get(std::span<uint8_t> to) {
    Writer out(to);
    impl_->write_state(out);
    return out.size();
}

std::vector<uint8_t> ForwardPass::state_get() {
    std::vector<uint8_t> bytes(state_size());
    bytes.resize(state_get(bytes));
    return bytes;
}

size_t ForwardPass::state_set(std::span<const uint8_t> state) {
    Impl & impl = *impl_;
    Reader in(state);
    size_t n_inner = 0;
    try {
        std::vector<Sequence::Saved> saved;
        if (impl.enabled()) {
            read_header(in, impl.layout.n_sequences, impl.layout.n_twins);
            if ((in.number<uint8_t>() != 0) != impl.layout.is_interleaved) {
                throw Error(
                    ErrorCode::invalid_state,
                    "saved state is of a context with another order of sequences: one of the two was created with the "
                    "schedule fused and a KV stream for each sequence, the other was not");
            }
            const forward::BatchLimits limits = impl.limits();
            for (const Sequence & sequence : impl.sequences) saved.push_back(sequence.read_rows(in, &limits));
        }
        n_inner = llama_state_set_data(impl.context.get(), in.rest().data(), in.rest().size());
        check_loaded(n_inner);
        for (size_t s = 0; s < saved.size(); ++s) {
            impl.sequences[s].adopt(std::move(saved[s]));
            impl.sequences[s].share_cells();  // cells that were shared still are
        }
    } catch (const Error &) {
        memory_clear(true);
        throw;
    }
    impl.outputs.clear(static_cast<size_t>(impl.n_vocab));
    return in.n_read() + n_inner;
}

size_t ForwardPass::state_seq_size(llama_seq_id sequence, llama_state_seq_flags flags) {
    return size_of([&](Writer & out) { impl_->write_state(out, sequence, flags); });
}

size_t ForwardPass::state_seq_get(std::span<uint8_t> to, llama_seq_id sequence, llama_state_seq_flags flags) {
    Writer out(to);
    impl_->write_state(out, sequence, flags);
    return out.size();
}

std::vector<uint8_t> ForwardPass::state_seq_get(llama_seq_id sequence, llama_state_seq_flags flags) {
    std::vector<uint8_t> bytes(state_seq_size(sequence, flags));
    bytes.resize(state_seq_get(bytes, sequence, flags));
    return bytes;
}

size_t ForwardPass::state_seq_set(std::span<const uint8_t> state, llama_seq_id sequence, llama_state_seq_flags flags) {
    Impl & impl = *impl_;
    impl.check_id(sequence);
    if (!impl.enabled()) {
        const size_t n_read =
            llama_state_seq_set_data_ext(impl.context.get(), state.data(), state.size(), sequence, flags);
        check_loaded(n_read);
        return n_read;
    }
    Sequence & loaded = impl.sequence(sequence);
    try {
        Reader in(state);
        read_header(in, 1, impl.layout.n_twins);
        const forward::BatchLimits limits = impl.limits();
        loaded.load_with_memory(in, &limits, flags);
        return in.n_read();
    } catch (const Error &) {
        loaded.clear();
        throw;
    }
}

}  // namespace harp
