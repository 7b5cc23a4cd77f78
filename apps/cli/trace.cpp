#include "trace.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "common.h"
#include "method/ranking.h"
#include "model/report.h"

namespace harp::cli {

using nlohmann::json;

namespace {

constexpr size_t n_candidates = 8;

/// The largest logits, largest first: [{"id", "text", "logit"}, ...].
json top_candidates(std::span<const float> logits, const llama_vocab & vocab) {
    json result = json::array();
    for (const llama_token id : method::greatest(logits, n_candidates)) {
        result.push_back(
            {{"id", id}, {"text", common_token_to_piece(&vocab, id)}, {"logit", logits[static_cast<size_t>(id)]}});
    }
    return result;
}

}  // namespace

Trace::Trace(const std::string & path, const llama_vocab & vocab) : path_(path), vocab_(vocab) {
    if (path_.empty()) return;
    file_.reset(std::fopen(path_.c_str(), "w"));
    if (!file_) throw Error(ErrorCode::io, fmt::format("cannot open the trace '{}': {}", path_, std::strerror(errno)));
}

void Trace::watch(ForwardPass & pass) {
    if (!file_ || !pass.enabled()) return;
    pass.set_observer([this](const StepObservation & o) {
        json & candidates = candidates_[o.position];
        candidates = {{"vanilla", top_candidates(o.vanilla, vocab_)}, {"mixed", top_candidates(o.mixed, vocab_)}};
        if (!o.reframed.empty()) candidates["reframed"] = top_candidates(o.reframed, vocab_);
    });
}

void Trace::write(const decoding::GeneratedToken & token) {
    if (!file_) return;
    const auto row = candidates_.find(token.position - 1);
    json line = row != candidates_.end() ? row->second : json::object();
    candidates_.erase(candidates_.begin(), candidates_.lower_bound(token.position));
    line["position"] = token.position;
    line["token"] = token.id;
    line["text"] = token.piece;
    line["entropy"] = token.record.entropy;
    line["ratio"] = token.record.ratio;
    line["hesitated"] = token.record.hesitated;
    const std::string text = dump(line) + "\n";
    // flushed at once, so that a full disk is an error now and an interrupted run leaves whole lines
    if (std::fwrite(text.data(), 1, text.size(), file_.get()) != text.size() || std::fflush(file_.get()) != 0) {
        throw Error(ErrorCode::io, fmt::format("cannot write the trace '{}': {}", path_, std::strerror(errno)));
    }
}

}  // namespace harp::cli
