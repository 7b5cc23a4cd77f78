#include "forward/reframing.h"

#include <utility>

namespace harp::forward {

void Reframing::install(llama_context & context, bool with_noise) {
    has_noise_ = with_noise;
    llama_set_embd_row_callback(&context, &Reframing::callback, this, with_noise);
}

void Reframing::expect(llama_seq_id inner, llama_pos position, Perturb perturb) {
    const auto index = static_cast<size_t>(inner);
    if (queues_.size() <= index) queues_.resize(index + 1);
    queues_[index].rows.push_back({position, std::move(perturb)});
}

std::optional<std::string> Reframing::finish() {
    size_t n_missing = 0;
    for (Queue & queue : queues_) {
        n_missing += queue.rows.size() - queue.n_seen;
        queue.rows.clear();
        queue.n_seen = 0;
    }
    const std::string failure = std::exchange(failure_, {});
    if (const std::exception_ptr thrown = std::exchange(thrown_, nullptr)) std::rethrow_exception(thrown);
    if (!failure.empty()) return failure;
    if (n_missing > 0) {
        return "the look-up of embeddings was not seen for " + std::to_string(n_missing) + " rows of reframed twins";
    }
    return std::nullopt;
}

void Reframing::callback(void * self, const llama_seq_id * ids, int32_t n_ids, llama_pos position, int64_t n_embd,
                         float * factors, float * noise, float * relative_noise) {
    if (n_ids != 1) return;  // a twin's row belongs to one sequence only
    const auto n = static_cast<size_t>(n_embd);
    const auto span = [n](float * values) { return values != nullptr ? std::span(values, n) : std::span<float>(); };
    static_cast<Reframing *>(self)->on_row(ids[0], position, {span(factors), span(noise), span(relative_noise)});
}

void Reframing::on_row(llama_seq_id inner, llama_pos position, const method::RowChange & change) {
    const auto index = static_cast<size_t>(inner);
    if (index >= queues_.size() || queues_[index].rows.empty()) return;
    Queue & queue = queues_[index];
    if (queue.n_seen == queue.rows.size() || queue.rows[queue.n_seen].position != position) {
        failure_ = "llama.cpp computed a row at position " + std::to_string(position) + " that was not expected";
        return;
    }
    const Perturb & perturb = queue.rows[queue.n_seen++].perturb;
    if (!perturb) return;
    try {
        perturb(change);
    } catch (...) {
        thrown_ = std::current_exception();
    }
}

}  // namespace harp::forward
