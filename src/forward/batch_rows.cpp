#include "forward/batch_rows.h"

#include <algorithm>
#include <cassert>
#include <map>
#include <string>

#include "harp/error.h"

namespace harp::forward {

namespace {

[[noreturn]] void reject(int32_t row, const std::string & what) {
    throw Error(ErrorCode::invalid_batch, "batch row " + std::to_string(row) + ": " + what);
}

void check_size(const llama_batch & batch, const BatchLimits & limits) {
    if (batch.n_tokens <= 0) {
        throw Error(ErrorCode::invalid_batch, "the batch is empty (n_tokens = " + std::to_string(batch.n_tokens) + ")");
    }
    if (static_cast<uint32_t>(batch.n_tokens) > limits.n_batch) {
        throw Error(ErrorCode::invalid_batch, "the batch has " + std::to_string(batch.n_tokens) +
                                                  " rows; allowed: 1.." + std::to_string(limits.n_batch) +
                                                  " (n_batch)");
    }
    if ((batch.token == nullptr) == (batch.embd == nullptr)) {
        throw Error(ErrorCode::invalid_batch, batch.token == nullptr
                                                  ? "the batch has neither tokens nor embeddings"
                                                  : "the batch has tokens and embeddings; allowed: one of them");
    }
    if (batch.embd != nullptr && batch.pos == nullptr) {
        throw Error(ErrorCode::invalid_batch, "a batch of embeddings needs positions (llama_batch.pos is NULL)");
    }
}

std::vector<llama_seq_id> sequences_of(const llama_batch & batch, int32_t row, const BatchLimits & limits) {
    std::vector<llama_seq_id> ids{0};
    if (batch.n_seq_id != nullptr && batch.seq_id != nullptr) {
        if (batch.n_seq_id[row] <= 0) reject(row, "belongs to no sequence");
        ids.assign(batch.seq_id[row], batch.seq_id[row] + batch.n_seq_id[row]);
    }
    for (const llama_seq_id id : ids) {
        if (id < 0 || static_cast<uint32_t>(id) >= limits.n_seq_max) {
            reject(row, "sequence id " + std::to_string(id) + "; allowed: 0.." + std::to_string(limits.n_seq_max - 1));
        }
    }
    return ids;
}

std::shared_ptr<const EmbeddingChunk> read_embeddings(const llama_batch & batch, const BatchLimits & limits) {
    if (batch.embd == nullptr) return nullptr;
    const auto n = static_cast<size_t>(batch.n_tokens);
    auto chunk = std::make_shared<EmbeddingChunk>();
    chunk->n_embd = limits.n_embd;
    chunk->n_pos = limits.n_pos;
    chunk->is_causal = limits.is_causal;
    chunk->values.assign(batch.embd, batch.embd + n * limits.n_embd);
    for (size_t i = 0; i < n; ++i) {
        for (size_t j = 0; j < limits.n_pos; ++j) chunk->positions.push_back(batch.pos[j * n + i]);
    }
    return chunk;
}

}  // namespace

std::vector<CallerRow> read_rows(const llama_batch & batch, const BatchLimits & limits,
                                 const std::function<llama_pos(llama_seq_id)> & next_position) {
    check_size(batch, limits);
    const std::shared_ptr<const EmbeddingChunk> chunk = read_embeddings(batch, limits);
    std::map<llama_seq_id, llama_pos> next;  // next position of the sequences seen so far in this batch
    std::vector<CallerRow> rows;
    rows.reserve(static_cast<size_t>(batch.n_tokens));
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        CallerRow row;
        if (chunk) {
            row.embedding = {chunk, static_cast<size_t>(i)};
        } else {
            row.token = batch.token[i];
            if (row.token < 0 || row.token >= limits.n_vocab) {
                reject(i, "token " + std::to_string(row.token) + "; allowed: 0.." + std::to_string(limits.n_vocab - 1));
            }
        }
        row.sequences = sequences_of(batch, i, limits);
        const llama_seq_id first = row.sequences.front();
        const auto known = next.find(first);
        row.position = batch.pos != nullptr ? batch.pos[i] : known != next.end() ? known->second : next_position(first);
        for (const llama_seq_id id : row.sequences) {
            const auto it = next.find(id);
            // a picture's row may have the same first position as the row before it (M-RoPE)
            const llama_pos shared = chunk && limits.n_pos > 1 ? 1 : 0;
            const llama_pos at_least = std::max(0, (it != next.end() ? it->second : next_position(id)) - shared);
            if (row.position < at_least) {
                reject(i, "position " + std::to_string(row.position) + " of sequence " + std::to_string(id) +
                              "; allowed: " + std::to_string(at_least) + " or above");
            }
            next[id] = row.position + 1;
        }
        row.is_output = batch.logits != nullptr ? batch.logits[i] != 0 : i == batch.n_tokens - 1;
        rows.push_back(std::move(row));
    }
    return rows;
}

void BatchRows::clear() {
    *this = BatchRows();
}

void BatchRows::add(llama_token token, llama_pos position, std::span<const llama_seq_id> sequences, bool is_output) {
    assert(embeddings_.empty());
    tokens_.push_back(token);
    positions_.push_back(position);
    add_sequences(sequences, is_output);
}

void BatchRows::add(const EmbeddingRow & row, llama_pos position, std::span<const llama_seq_id> sequences,
                    bool is_output) {
    assert(tokens_.empty());
    embeddings_.push_back(row);
    embedding_positions_.push_back(position);
    add_sequences(sequences, is_output);
}

void BatchRows::add_sequences(std::span<const llama_seq_id> sequences, bool is_output) {
    n_sequences_.push_back(static_cast<int32_t>(sequences.size()));
    first_sequence_.push_back(sequence_ids_.size());
    sequence_ids_.insert(sequence_ids_.end(), sequences.begin(), sequences.end());
    is_output_.push_back(is_output ? 1 : 0);
}

llama_batch BatchRows::view() {
    sequence_pointers_.resize(size());
    for (size_t i = 0; i < size(); ++i) sequence_pointers_[i] = sequence_ids_.data() + first_sequence_[i];
    if (!embeddings_.empty()) {
        const size_t n_pos = embeddings_.front().chunk->n_pos;
        embedding_values_.clear();
        positions_.resize(n_pos * size());
        for (size_t i = 0; i < size(); ++i) {
            const auto & [chunk, index] = embeddings_[i];
            const auto begin = chunk->values.begin() + static_cast<std::ptrdiff_t>(index * chunk->n_embd);
            embedding_values_.insert(embedding_values_.end(), begin,
                                     begin + static_cast<std::ptrdiff_t>(chunk->n_embd));
            const llama_pos * came_at = &chunk->positions[index * n_pos];
            const llama_pos moved = embedding_positions_[i] - came_at[0];
            for (size_t j = 0; j < n_pos; ++j) {
                positions_[j * size() + i] = came_at[j] + (j < 3 ? moved : 0);  // M-RoPE: time, height, width, unused
            }
        }
    }
    llama_batch batch{};
    batch.n_tokens = static_cast<int32_t>(size());
    batch.token = embeddings_.empty() ? tokens_.data() : nullptr;
    batch.embd = embeddings_.empty() ? nullptr : embedding_values_.data();
    batch.pos = positions_.data();
    batch.n_seq_id = n_sequences_.data();
    batch.seq_id = sequence_pointers_.data();
    batch.logits = is_output_.data();
    return batch;
}

}  // namespace harp::forward
