// ForwardPass: second passes in batches of their own (schedule lazy, and the first one of each sequence): twins catch
// up on their pending rows.
#include <algorithm>
#include <map>
#include <utility>

#include "forward/pass_impl.h"
#include "method/mixing.h"

namespace harp {

using forward::Draw;
using forward::Output;
using forward::Sequence;

namespace {

/// llama.cpp does not decode rows after a gap in the positions of their sequence.
/// @param previous the twin's last row before the view, if there is one
void refuse_gap(const std::vector<forward::ViewRow> & view, const forward::Row * previous, llama_pos offset,
                llama_seq_id sequence) {
    bool follows_token = previous != nullptr && !previous->embedding.chunk;
    llama_pos before = previous != nullptr ? previous->position + offset : 0;
    for (const forward::ViewRow & row : view) {
        const bool is_token = !row.embedding.chunk;
        if (follows_token && is_token && row.position > before + 1) {
            throw Error(ErrorCode::unsupported_call,
                        "sequence " + std::to_string(sequence) + " has a gap before position " +
                            std::to_string(row.position - offset) +
                            ": its second pass cannot read across it; close the gap (memory_seq_add) first");
        }
        follows_token = is_token;
        before = row.position;
    }
}

}  // namespace

bool ForwardPass::Impl::waits_for_second_pass(const Output & output) const {
    if (!output.record.hesitated || !output.twin_rows.empty() || output.mix.beta == 1.0F) return false;
    return sequence(output.sequence).view().differs_at(output.index);
}

void ForwardPass::Impl::catch_up(const CountUsefulOutputs & count_useful) {
    const auto waits = [this](const Output & output) { return waits_for_second_pass(output); };
    for (auto begin = outputs.begin(); std::any_of(begin, outputs.end(), waits);) {
        const size_t n_useful = count_useful ? std::min(count_useful(), outputs.size()) : outputs.size();
        const auto end = outputs.begin() + static_cast<std::ptrdiff_t>(n_useful);
        if (end <= begin) return;
        std::vector<std::vector<Output *>> waiting(layout.n_sequences);  // [sequence]: hesitating rows, by position
        for (; begin != end; ++begin) {
            if (waits(*begin)) waiting[static_cast<size_t>(begin->sequence)].push_back(&*begin);
        }
        for (std::vector<TwinJob> jobs = next_jobs(waiting); !jobs.empty(); jobs = next_jobs(waiting)) run_jobs(jobs);
    }
}

/// Takes from each sequence the waiting hesitations that share the next draw, and the rows that its twins need for
/// them.
///
///   rows    t0 t1 t2 t3 t4 t5 t6          t3 and t5 hesitate, the twin holds t0..t1
///   job           t2 t3 t4 t5             decoded for the twin, with logits at t3 and t5
///   (if t5 needs a new draw: first a job t2..t3, then the twin is emptied, then a job t0..t5)
std::vector<ForwardPass::Impl::TwinJob> ForwardPass::Impl::next_jobs(std::vector<std::vector<Output *>> & waiting) {
    std::vector<TwinJob> jobs;
    for (auto & queue : waiting) {
        if (queue.empty()) continue;
        Sequence & of_queue = sequence(queue.front()->sequence);
        if (of_queue.options().view == View::last) {  // each hesitation has a view of its own
            jobs.push_back({queue.front()->sequence, {}, 0, queue.front()->index + 1, {queue.front()}});
            queue.erase(queue.begin());
            continue;
        }
        const Draw draw = of_queue.due_draw(queue.front()->index);
        const auto end = std::find_if(queue.begin(), queue.end(),
                                      [&](const Output * output) { return of_queue.due_draw(output->index) != draw; });
        TwinJob job{queue.front()->sequence, draw, 0, 0, {queue.begin(), end}};
        queue.erase(queue.begin(), end);

        // cut the twins before the first row whose logits are wanted: logits come only from a new decode of that row
        const bool same_draw = of_queue.twin_draw() == draw;
        of_queue.cut_twins(same_draw ? job.wants.front()->index : of_queue.n_clean_prefix());
        of_queue.share_prompt_again();
        job.n_held = of_queue.n_twin();
        job.end = job.wants.back()->index + 1;
        jobs.push_back(std::move(job));
    }
    return jobs;
}

void ForwardPass::Impl::run_jobs(const std::vector<TwinJob> & jobs) {
    std::map<Output *, std::vector<float>> means;      // reframed logits, mean over the reframings so far
    std::vector<std::pair<int32_t, Output *>> wanted;  // rows of the batch under construction
    forward::InnerBatch batch;
    double seconds = 0;
    const size_t batch_rows = llama_n_batch(context.get());
    outputs.keep();  // because run() overwrites llama.cpp's buffer

    const auto flush = [&] {
        if (batch.size() == 0) return;
        seconds += run(batch);
        statistics.second_pass_rows += batch.size();
        for (const auto & [row, output] : wanted) {
            auto & mean = means.try_emplace(output, static_cast<size_t>(n_vocab), 0.0F).first->second;
            method::accumulate_mean(inner_logits(row), sequence(output->sequence).options().reframings, mean);
        }
        wanted.clear();
        batch.clear();
    };
    for (uint32_t r = 0; r < layout.n_twins; ++r) {
        for (const TwinJob & job : jobs) {
            const Sequence & of_job = sequence(job.sequence);
            if (r >= of_job.options().reframings) continue;
            auto want = job.wants.begin();
            bool is_first = true;
            const forward::ViewOf view = of_job.view();
            const auto view_rows = view.read(job.n_held, job.end);
            refuse_gap(view_rows, job.n_held > 0 ? &view.rows[job.n_held - 1] : nullptr, view.offset(), job.sequence);
            for (const forward::ViewRow & row : view_rows) {
                // tokens and embeddings cannot share a batch, and embeddings are decoded in the batches they came in
                const bool is_next_of_chunk =
                    row.embedding.chunk.get() == batch.chunk() && (batch.chunk() == nullptr || !is_first);
                if (!is_next_of_chunk || batch.size() == batch_rows) flush();
                is_first = false;
                const bool is_wanted = want != job.wants.end() && (*want)->index == row.index;
                const int32_t inner = batch.add_twin(row, is_wanted, job.sequence, r, job.draw, of_job.ids().twins[r]);
                if (is_wanted) wanted.emplace_back(inner, *want++);
            }
        }
    }
    flush();
    for (const TwinJob & job : jobs) {
        Sequence & of_job = sequence(job.sequence);
        of_job.twins_hold(job.end, job.draw);
        if (of_job.options().view == View::last) of_job.empty_twins();
    }
    statistics.second_pass_seconds += seconds;
    statistics.catch_ups += jobs.size();
    for (auto & [output, mean] : means) mix(*output, mean);
}

void ForwardPass::Impl::complete_twins(llama_seq_id id) {
    Sequence & of_id = sequence(id);
    if (!of_id.keeps_twins() || !of_id.has_pending()) return;
    if (of_id.options().view == View::guidance && !of_id.view().differs_at(of_id.size() - 1)) return;
    const Draw draw = of_id.n_twin() > 0 ? of_id.twin_draw() : of_id.due_draw(of_id.size() - 1);
    of_id.share_prompt_again();
    try {
        run_jobs({{id, draw, of_id.n_twin(), of_id.size()}});
    } catch (const Error & error) {  // for example no room: the twins begin anew at the next hesitation
        of_id.empty_twins();
        // it may have emptied sequences (recurrent memory)
        if (error.code() == ErrorCode::aborted || error.code() == ErrorCode::decode_failed) throw;
    } catch (...) {
        of_id.empty_twins();
        throw;
    }
}

}  // namespace harp
