#include "decoding/feed.h"

namespace harp::decoding {

void check_negative_prompt(std::span<const llama_token> negative_prompt, const Options & options) {
    if (negative_prompt.empty() || options.view == View::guidance) return;
    throw Error(ErrorCode::invalid_option, "a negative prompt has no effect with view " + get_option(options, "view") +
                                               "; allowed: with view guidance");
}

std::vector<llama_token> negative_prompt_for(const std::optional<Options> & options,
                                             const std::vector<llama_token> & negative_prompt) {
    return options && options->view == View::guidance ? negative_prompt : std::vector<llama_token>();
}

size_t add_rows(forward::BatchRows & rows, Room & room, const Feed & feed) {
    size_t n = 0;
    for (size_t i = feed.n_done; i < feed.tokens.size() && room.rows > 0; ++i, ++n) {
        const bool is_output = i >= feed.n_silent;
        if (is_output && room.outputs == 0) break;
        rows.add(feed.tokens[i], feed.first + static_cast<llama_pos>(i), {&feed.sequence, 1}, is_output);
        --room.rows;
        if (is_output) --room.outputs;
    }
    return n;
}

void decode_feed(ForwardPass & pass, Feed feed, const OnFed & on_fed, size_t most_outputs) {
    forward::BatchRows rows;
    while (feed.n_done < feed.tokens.size()) {
        rows.clear();
        Room room{pass.n_batch(), most_outputs};
        feed.n_done += add_rows(rows, room, feed);
        pass.decode(rows.view());
        if (on_fed && !on_fed(feed.n_done)) return;
    }
}

llama_pos cut_sequence(ForwardPass & pass, llama_seq_id sequence, llama_pos end) {
    if (end > pass.memory_seq_pos_max(sequence)) return end;  // there is nothing to cut
    if (pass.can_continue_at(sequence, end) && pass.memory_seq_rm(sequence, end, -1)) return end;
    pass.memory_seq_rm(sequence, -1, -1);
    return 0;
}

}  // namespace harp::decoding
