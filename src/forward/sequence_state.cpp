// Sequence: saving and loading.
//
//   what shapes the twins | chunks of embeddings | rows | prompt, twins, draw || memory blobs: clean stream, twins
//
// The blobs are llama.cpp's. The blob of a twin that holds nothing is empty.
#include <limits>
#include <map>
#include <utility>

#include "forward/sequence.h"

namespace harp::forward {

namespace {

constexpr uint8_t hesitated_flag = 1, output_flag = 2, embedding_flag = 4;
constexpr size_t row_size = 3 * sizeof(int32_t) + sizeof(uint8_t);  // at least

template <typename T>
void write_all(Writer & out, const std::vector<T> & values) {
    out.number<uint64_t>(values.size());
    for (const T value : values) out.number(value);
}

template <typename T>
std::vector<T> read_all(Reader & in) {
    std::vector<T> values(in.count(sizeof(T)));
    for (T & value : values) value = in.number<T>();
    return values;
}

[[noreturn]] void fail(const std::string & why) {
    throw Error(ErrorCode::invalid_state, "saved state: " + why);
}

/// The chunks that the rows refer to, each once.
using Chunks = std::vector<std::shared_ptr<const EmbeddingChunk>>;

Chunks chunks_of(const std::vector<Row> & rows) {
    Chunks chunks;
    for (const Row & row : rows) {
        const bool is_new = row.embedding.chunk && (chunks.empty() || chunks.back() != row.embedding.chunk);
        if (is_new) chunks.push_back(row.embedding.chunk);
    }
    return chunks;
}

void write_chunks(Writer & out, const Chunks & chunks) {
    out.number<uint64_t>(chunks.size());
    for (const auto & chunk : chunks) {
        out.number<uint64_t>(chunk->n_embd);
        out.number<uint64_t>(chunk->n_pos);
        out.number<uint8_t>(chunk->is_causal ? 1 : 0);
        write_all(out, chunk->values);
        write_all(out, chunk->positions);
    }
}

Chunks read_chunks(Reader & in, const BatchLimits * limits) {
    Chunks chunks(in.count(4 * sizeof(uint64_t) + 1));
    for (auto & each : chunks) {
        auto chunk = std::make_shared<EmbeddingChunk>();
        chunk->n_embd = in.number<uint64_t>();
        chunk->n_pos = in.number<uint64_t>();
        chunk->is_causal = in.number<uint8_t>() != 0;
        chunk->values = read_all<float>(in);
        chunk->positions = read_all<llama_pos>(in);
        if (limits != nullptr && (chunk->n_embd != limits->n_embd || chunk->n_pos != limits->n_pos)) {
            fail("embeddings of " + std::to_string(chunk->n_embd) + " numbers and " + std::to_string(chunk->n_pos) +
                 " positions; allowed: " + std::to_string(limits->n_embd) + " and " + std::to_string(limits->n_pos));
        }
        const size_t n_rows = chunk->values.size() / chunk->n_embd;
        if (n_rows == 0 || n_rows * chunk->n_embd != chunk->values.size() ||
            n_rows * chunk->n_pos != chunk->positions.size()) {
            fail("embeddings of a wrong size");
        }
        each = std::move(chunk);
    }
    return chunks;
}

void write_row(Writer & out, const Row & row, size_t n_chunks_before) {
    out.number(row.token);
    out.number(row.position);
    out.number(row.ordinal);
    const bool is_embedding = row.embedding.chunk != nullptr;
    out.number<uint8_t>(static_cast<uint8_t>((row.hesitated ? hesitated_flag : 0) | (row.is_output ? output_flag : 0) |
                                             (is_embedding ? embedding_flag : 0)));
    if (is_embedding) {
        out.number<uint64_t>(n_chunks_before);
        out.number<uint64_t>(row.embedding.index);
    }
}

Row read_row(Reader & in, const Chunks & chunks, const BatchLimits * limits) {
    Row row;
    row.token = in.number<llama_token>();
    row.position = in.number<llama_pos>();
    row.ordinal = in.number<uint32_t>();
    const auto flags = in.number<uint8_t>();
    row.hesitated = (flags & hesitated_flag) != 0;
    row.is_output = (flags & output_flag) != 0;
    if ((flags & embedding_flag) != 0) {
        const auto chunk = in.number<uint64_t>();
        row.embedding.index = in.number<uint64_t>();
        const bool is_there =
            chunk < chunks.size() && row.embedding.index < chunks[chunk]->positions.size() / chunks[chunk]->n_pos;
        if (!is_there) fail("a row of embeddings that are not there");
        row.embedding.chunk = chunks[chunk];
    } else if (limits != nullptr && (row.token < 0 || row.token >= limits->n_vocab)) {
        fail("token " + std::to_string(row.token) + "; allowed: 0.." + std::to_string(limits->n_vocab - 1));
    }
    return row;
}

bool same_row(const Row & a, const Row & b) {
    const bool same_embedding = a.embedding.chunk == b.embedding.chunk ||
                                (a.embedding.chunk && b.embedding.chunk && *a.embedding.chunk == *b.embedding.chunk);
    return a.token == b.token && a.position == b.position && a.ordinal == b.ordinal && same_embedding &&
           a.embedding.index == b.embedding.index;
}

}  // namespace

void Sequence::save_rows(Writer & out) const {
    out.number(options_.seed);
    out.number(mask_family_);
    out.number(static_cast<uint32_t>(options_.perturbation));
    out.number(options_.strength);
    out.number(options_.reframings);
    out.number(static_cast<uint32_t>(options_.scope));
    out.number(static_cast<uint32_t>(options_.view));
    write_all(out, negative_prompt_);
    const Chunks chunks = chunks_of(rows_);
    write_chunks(out, chunks);
    out.number<uint64_t>(rows_.size());
    size_t chunk = 0;
    for (const Row & row : rows_) {
        while (row.embedding.chunk && chunks[chunk] != row.embedding.chunk) ++chunk;
        write_row(out, row, chunk);
    }
    out.number<uint64_t>(n_prompt_);
    out.number<int32_t>(prompt_end_.value_or(-1));
    out.number<uint64_t>(n_twin_);
    out.number<uint64_t>(n_shared_);
    out.number(twin_draw_.index);
    out.number(twin_draw_.length);
    out.number(dropped_hesitations_);
}

Sequence::Saved Sequence::read_rows(Reader & in, const BatchLimits * limits) const {
    Saved saved;
    saved.same_masks = [&] {
        bool same = in.number<uint64_t>() == options_.seed;
        same = (in.number<uint32_t>() == mask_family_) && same;
        same = (in.number<uint32_t>() == static_cast<uint32_t>(options_.perturbation)) && same;
        same = (in.number<float>() == options_.strength) && same;
        same = (in.number<uint32_t>() == options_.reframings) && same;
        same = (in.number<uint32_t>() == static_cast<uint32_t>(options_.scope)) && same;
        same = (in.number<uint32_t>() == static_cast<uint32_t>(options_.view)) && same;
        return (read_all<llama_token>(in) == negative_prompt_) && same;
    }();
    const Chunks chunks = read_chunks(in, limits);
    const size_t n_rows = in.count(row_size);
    for (size_t i = 0; i < n_rows; ++i) {
        saved.rows.push_back(read_row(in, chunks, limits));
        const llama_pos position = saved.rows.back().position;  // below the greatest, so that there is a next one
        if (position < 0 || position == std::numeric_limits<llama_pos>::max() ||
            (i > 0 && saved.rows[i - 1].position > position)) {
            fail("positions that do not follow each other");
        }
    }
    saved.n_prompt = in.number<uint64_t>();
    if (const auto end = in.number<int32_t>(); end >= 0) saved.prompt_end = end;
    saved.n_twin = in.number<uint64_t>();
    saved.n_shared = in.number<uint64_t>();
    saved.twin_draw.index = in.number<uint32_t>();
    saved.twin_draw.length = in.number<uint32_t>();
    saved.dropped_hesitations = in.number<uint32_t>();
    if (saved.n_prompt > n_rows || saved.n_twin > n_rows || saved.n_shared > saved.n_twin)
        fail("counts beyond its rows");
    return saved;
}

void Sequence::adopt(Saved saved) {
    rows_ = std::move(saved.rows);
    n_prompt_ = saved.n_prompt;
    prompt_end_ = saved.prompt_end;
    n_twin_ = saved.n_twin;
    n_shared_ = saved.n_shared;
    twin_draw_ = saved.twin_draw;
    dropped_hesitations_ = saved.dropped_hesitations;
    if (!saved.same_masks) empty_twins();
    check();
}

// ---------------------------------------------------------------------------------------------------------------------
// States that include memory

void Sequence::save_with_memory(Writer & out, llama_state_seq_flags flags) const {
    save_rows(out);
    const auto save_blob = [&](llama_seq_id inner, bool holds_rows) {
        const size_t n = holds_rows ? memory_->saved_size(inner, flags) : 0;
        out.number<uint64_t>(n);
        const std::span<uint8_t> room = out.room(n);
        if (!out.is_counting() && n > 0 && memory_->save(inner, room, flags) != n) {
            throw Error(ErrorCode::invalid_state, "llama.cpp could not save the sequence (its log says why)");
        }
    };
    save_blob(ids_.clean, !rows_.empty());
    for (size_t r = 0; r < ids_.twins.size(); ++r) save_blob(ids_.twins[r], n_twin_ > 0 && r < options_.reframings);
}

std::vector<uint8_t> Sequence::saved_with_memory(llama_state_seq_flags flags) const {
    Writer counting;
    save_with_memory(counting, flags);
    std::vector<uint8_t> bytes(counting.size());
    Writer out(bytes);
    save_with_memory(out, flags);
    return bytes;
}

void Sequence::load_blob(Reader & in, llama_seq_id inner, llama_state_seq_flags flags) {
    const auto bytes = in.bytes(in.number<uint64_t>());
    if (!bytes.empty() && memory_->load(inner, bytes, flags) == 0) {
        throw Error(ErrorCode::invalid_state, "llama.cpp could not read the saved sequence (its log says why)");
    }
}

void Sequence::load_with_memory(Reader & in, const BatchLimits * limits, llama_state_seq_flags flags) {
    try {
        Saved saved = read_rows(in, limits);
        if ((flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) != 0) {
            go_back_to(in, saved);
        } else {
            load(in, std::move(saved));
        }
        check();
    } catch (...) {
        clear();
        throw;
    }
}

void Sequence::load(Reader & in, Saved saved) {
    clear();  // an empty blob would leave llama.cpp's memory as it is
    load_blob(in, ids_.clean, LLAMA_STATE_SEQ_FLAGS_NONE);
    for (const llama_seq_id twin : ids_.twins) load_blob(in, twin, LLAMA_STATE_SEQ_FLAGS_NONE);
    saved.n_shared = 0;  // the loaded twins have cells of their own
    adopt(std::move(saved));
}

/// A partial state holds only what cannot be cut (sliding windows, recurrent states); everything else is still in
/// memory.
///
///   now     t0 t1 t2 t3 t4 t5      saved at t0 t1 t2 t3, twin t0 t1
///   clean   t0 t1 t2 t3            checkpoint loaded, the rest cut
///   twin    t0 t1                  the same if it has held those rows since; else it begins anew
///
/// Where the sequence holds other rows than it did then, it goes back to the last row that is the same, if memory can be
/// cut there: llama.cpp's server loads a checkpoint over a text whose last token is another, and decodes that anew.
void Sequence::go_back_to(Reader & in, const Saved & saved) {
    const auto first_other =
        std::mismatch(saved.rows.begin(), saved.rows.end(), rows_.begin(), rows_.end(), same_row).first;
    const auto n = static_cast<size_t>(first_other - saved.rows.begin());
    const size_t n_clean = std::min(options_.scope == Scope::all ? 0 : saved.n_prompt, saved.n_twin);
    const bool twins_fit = saved.same_masks && saved.n_twin <= n_twin_ && saved.twin_draw == twin_draw_ &&
                           n_clean == std::min(n_clean_prefix(), saved.n_twin) &&
                           (twins_are_alike() || saved.n_prompt == n_prompt_);
    truncate_rows(n);
    settle_prompt_end();
    const auto skip = [&](llama_seq_id inner) {
        in.bytes(in.number<uint64_t>());
        memory_->remove(inner, -1, -1);
    };
    const auto go_back = [&](llama_seq_id inner, llama_pos end) {
        load_blob(in, inner, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
        return forward::can_continue_at(*memory_, inner, end, first_row_in_window(inner, end)) &&
               memory_->remove(inner, end, -1);
    };
    if (saved.rows.empty()) {
        skip(ids_.clean);
    } else if (n == 0 || !go_back(ids_.clean, next_position())) {
        throw Error(ErrorCode::invalid_state,
                    "a partial state can only be loaded over the rows that the sequence held when it was saved");
    }
    n_twin_ = twins_fit ? std::min(saved.n_twin, n) : 0;
    if (n_twin_ < view().least()) n_twin_ = 0;
    bool twins_kept = n_twin_ > 0;
    for (size_t r = 0; r < ids_.twins.size(); ++r) {
        if (n_twin_ > 0 && r < options_.reframings) {
            twins_kept = go_back(ids_.twins[r], twin_end()) && twins_kept;
        } else {
            skip(ids_.twins[r]);
        }
    }
    if (!twins_kept) empty_twins();
    n_shared_ = std::min(n_shared_, n_twin_);
}

}  // namespace harp::forward
