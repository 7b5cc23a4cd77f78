#include "forward/batch_rows.h"

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
    if (batch.token == nullptr || batch.embd != nullptr) {
        throw Error(ErrorCode::unsupported_call,
                    "batches of embeddings (llama_batch.embd) cannot be reframed; switch HARP off for this context");
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

}  // namespace

std::vector<TokenRow> read_rows(const llama_batch & batch, const BatchLimits & limits,
                                const std::function<llama_pos(llama_seq_id)> & next_position) {
    check_size(batch, limits);
    std::map<llama_seq_id, llama_pos> next;  // of the sequences met so far in this batch
    std::vector<TokenRow> rows;
    rows.reserve(static_cast<size_t>(batch.n_tokens));
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        TokenRow row;
        row.token = batch.token[i];
        if (row.token < 0 || row.token >= limits.n_vocab) {
            reject(i, "token " + std::to_string(row.token) + "; allowed: 0.." + std::to_string(limits.n_vocab - 1));
        }
        row.sequences = sequences_of(batch, i, limits);
        const llama_seq_id first = row.sequences.front();
        const auto known = next.find(first);
        const llama_pos expected = known != next.end() ? known->second : next_position(first);
        row.position = batch.pos != nullptr ? batch.pos[i] : expected;
        for (const llama_seq_id id : row.sequences) {
            const auto it = next.find(id);
            const llama_pos at_least = it != next.end() ? it->second : next_position(id);
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
    tokens_.clear();
    positions_.clear();
    n_sequences_.clear();
    sequence_ids_.clear();
    first_sequence_.clear();
    is_output_.clear();
}

void BatchRows::add(llama_token token, llama_pos position, std::span<const llama_seq_id> sequences, bool is_output) {
    tokens_.push_back(token);
    positions_.push_back(position);
    n_sequences_.push_back(static_cast<int32_t>(sequences.size()));
    first_sequence_.push_back(sequence_ids_.size());
    sequence_ids_.insert(sequence_ids_.end(), sequences.begin(), sequences.end());
    is_output_.push_back(is_output ? 1 : 0);
}

std::span<const llama_seq_id> BatchRows::sequences(size_t row) const {
    return {sequence_ids_.data() + first_sequence_[row], static_cast<size_t>(n_sequences_[row])};
}

llama_batch BatchRows::view() {
    sequence_pointers_.resize(size());
    for (size_t i = 0; i < size(); ++i) sequence_pointers_[i] = sequence_ids_.data() + first_sequence_[i];
    llama_batch batch{};
    batch.n_tokens = static_cast<int32_t>(size());
    batch.token = tokens_.data();
    batch.pos = positions_.data();
    batch.n_seq_id = n_sequences_.data();
    batch.seq_id = sequence_pointers_.data();
    batch.logits = is_output_.data();
    return batch;
}

}  // namespace harp::forward
