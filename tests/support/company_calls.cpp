// Company: the random calls.
#include <algorithm>
#include <stdexcept>

#include "support/company.h"

namespace harp::testing {

void Company::any_call() {
    const llama_seq_id s = any();
    const llama_pos end = next(s);
    const int what = random_.below(100);
    if (what < 55) {
        decode_some();
    } else if (what < 63) {
        const llama_pos cut = random_.chance(20) ? -1 : std::max(0, end - random_.below(8));
        remove(s, cut, random_.chance(50) ? -1 : end + 1);
    } else if (what < 70) {
        shift(s, end);
    } else if (what < 77) {
        copy(s, any(), end);
    } else if (what < 82) {
        Options options = random_options();
        if (random_.chance(50)) {
            const double threshold = options.gate == Gate::entropy ? options.threshold : 1;
            options = pass_->sequence_options(s);
            options.gate = Gate::entropy;
            options.threshold = threshold;
        }
        set_options(s, options, random_.of({0U, 1U, 2U, 3U}));
    } else if (what < 85) {
        add(s, "prompt end", [p = random_.below(end + 10)](ForwardPass & pass, llama_seq_id id) {
            pass.set_prompt_end(id, p);
            return true;
        });
    } else if (what < 87) {
        std::vector<llama_token> tokens(static_cast<size_t>(random_.below(7)));
        for (llama_token & each : tokens) each = token();
        set_negative_prompt(s, tokens);
    } else if (what < 89) {
        add(s, "prepare twins", [](ForwardPass & pass, llama_seq_id id) {
            pass.prepare_twins(id);
            return true;
        });
    } else if (what < 90) {
        say("keep " + std::to_string(s));
        pass_->memory_seq_keep(s);
        for (const llama_seq_id other : ids()) {
            if (other != s) remove(other, -1, -1);
        }
    } else {
        save_or_load(s);
    }
}

Company::Part Company::any_part(llama_seq_id s) {
    Part part{s, {}, next(s), {}};
    int n = 1 + random_.below(random_.chance(70) ? 2 : 9);
    if (part.first == 0) n = 1 + random_.below(is_windowed_ && random_.chance(50) ? 330 : 30);
    const int outputs = random_.below(4);  // all, some, the last, none
    for (int i = 0; i < n; ++i) {
        part.tokens.push_back(token());
        part.is_output.push_back(outputs == 0 || (outputs == 1 && random_.chance(50)) || (outputs == 2 && i + 1 == n));
    }
    return part;
}

void Company::decode_some() {
    std::vector<Part> parts;
    for (const llama_seq_id s : ids()) {
        if (random_.chance(60)) parts.push_back(any_part(s));
    }
    size_t n_rows = 0;
    std::string name = "decode";
    for (const Part & part : parts) {
        n_rows += part.tokens.size();
        name.append(" ").append(std::to_string(part.tokens.size())).append(" of ").append(std::to_string(part.s));
    }
    if (n_rows == 0 || n_rows > pass_->n_batch()) return;
    forward::BatchRows rows;
    const bool by_turns = random_.chance(40);
    std::vector<size_t> done(parts.size(), 0);
    for (size_t p = 0; rows.size() < n_rows;) {
        if (done[p] < parts[p].tokens.size()) parts[p].add(rows, parts[p].s, done[p]++);
        if (by_turns || done[p] == parts[p].tokens.size()) p = (p + 1) % parts.size();
    }
    const int trouble = random_.below(25);
    if (trouble == 0) throws_after_ = random_.below(3);
    if (trouble == 1 && !is_move_pending_) {  // llama.cpp would leave the move done in part
        aborts_after_ = random_.below(60);
        const auto stop = [](void * left) { return (*static_cast<int *>(left))-- <= 0; };
        llama_set_abort_callback(pass_->context(), stop, &aborts_after_);
    }
    say(name);
    bool succeeds = try_decode(rows, parts);
    throws_after_ = -1;
    llama_set_abort_callback(pass_->context(), nullptr, nullptr);
    const auto is_there = [this](const Part & part) { return next(part.s) == part.first; };
    if (!succeeds && std::all_of(parts.begin(), parts.end(), is_there)) {
        for (const llama_seq_id s : ids()) {  // for room
            const bool is_in_batch = std::any_of(parts.begin(), parts.end(), [s](auto & part) { return part.s == s; });
            if (trouble > 1 && !is_in_batch) remove(s, -1, -1);
        }
        say(name + " again");
        succeeds = try_decode(rows, parts);
    }
    if (!succeeds) return;
    for (const Part & part : parts) {
        const auto apply = [part](ForwardPass & pass, llama_seq_id id) {
            forward::BatchRows own;
            for (size_t i = 0; i < part.tokens.size(); ++i) part.add(own, id, i);
            pass.decode(own.view());
            return true;
        };
        Call call{name, apply};
        for (const auto & [s, seen] : seen_) {
            if (s == part.s) call.seen.push_back(seen);
        }
        member(part.s).history.push_back(std::make_shared<Call>(std::move(call)));
    }
}

bool Company::try_decode(forward::BatchRows & rows, const std::vector<Part> & parts) {
    std::vector<llama_pos> before;
    for (const llama_seq_id s : ids()) before.push_back(next(s));
    seen_.clear();
    try {
        pass_->decode(rows.view());
        is_move_pending_ = false;
        return true;
    } catch (const std::runtime_error & error) {
        say(std::string("  ") + error.what());
    }
    for (const Part & part : parts) member(part.s).begins_anew = true;
    for (const llama_seq_id s : ids()) {
        if (next(s) == before[static_cast<size_t>(s)]) continue;
        EXPECT_TRUE(next(s) == 0 && (is_recurrent_ || is_windowed_)) << said_;
        remove(s, -1, -1);
    }
    return false;
}

void Company::shift(llama_seq_id s, llama_pos end) {
    if (is_recurrent_ || is_windowed_ || end < 4) return;
    const llama_pos from = random_.below(end - 2), to = from + 1 + random_.below(std::min(4, end - from - 2));
    EXPECT_TRUE(remove(s, from, to)) << said_;
    member(s).has_moved = is_move_pending_ = true;
    try {
        add(s, "move", [from, to](ForwardPass & pass, llama_seq_id id) {
            pass.memory_seq_add(id, to, -1, from - to);
            return true;
        });
    } catch (const Error & error) {
        EXPECT_EQ(error.code(), ErrorCode::context_full) << error.what() << said_;
        remove(s, -1, -1);
    }
}

void Company::copy(llama_seq_id from, llama_seq_id to, llama_pos end) {
    if (from == to) return;
    remove(to, -1, -1);
    const bool is_part = params_.kv_unified && end > 1 && random_.chance(40);
    const llama_pos p1 = is_part ? 1 + random_.below(end - 1) : -1;
    say("copy " + std::to_string(from) + " to " + std::to_string(to) + " up to " + std::to_string(p1));
    try {
        pass_->memory_seq_cp(from, to, is_part ? 0 : -1, p1);
    } catch (const Error & error) {
        EXPECT_TRUE(is_part && (is_windowed_ || is_recurrent_)) << error.what() << said_;
        return;
    }
    member(to) = member(from);
    member(to).partial.clear();
    if (!is_part) return;
    const auto cut = [p1](ForwardPass & pass, llama_seq_id id) { return pass.memory_seq_rm(id, p1, -1); };
    member(to).history.push_back(std::make_shared<Call>(Call{"remove the rest", cut}));
}

void Company::save_or_load(llama_seq_id s) {
    Member & of = member(s);
    const int what = random_.below(6);
    if (what < 2) {
        say("save " + std::to_string(s));
        saved_.emplace_back(pass_->state_seq_get(s), of);
    } else if (what == 2 && !saved_.empty()) {
        const auto & [bytes, as] = saved_[static_cast<size_t>(random_.below(static_cast<int>(saved_.size())))];
        replay(s);  // what it holds is lost
        say("load into " + std::to_string(s));
        try {
            pass_->state_seq_set(bytes, s);
        } catch (const Error & error) {  // no room
            EXPECT_TRUE(params_.kv_unified) << error.what() << said_;
            remove(s, -1, -1);
            return;
        }
        const Member now = std::exchange(of, as);
        set_options(s, pass_->sequence_options(s), now.mask_family);
        set_negative_prompt(s, now.negative_prompt);
    } else if (what == 3 && next(s) > 0) {
        say("partial state of " + std::to_string(s));
        of.partial = pass_->state_seq_get(s, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
        of.partial_history = of.history;
    } else if (what == 4 && !of.partial.empty()) {
        replay(s);
        say("back to the partial state of " + std::to_string(s));
        pass_->state_seq_set(of.partial, s, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
        of.history = of.partial_history;
        of.begins_anew = true;
    } else if (what == 5) {
        say("save and load all");
        pass_->state_set(pass_->state_get());
    }
}

}  // namespace harp::testing
