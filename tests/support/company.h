// A pass whose sequences are decoded, cut, copied, shifted, saved and loaded at random, with options that change and
// batches that fail. Each sequence keeps a history of what was done to it, to be replayed in a pass of its own.
//
//   company.cpp        options, histories, their replay
//   company_calls.cpp  the random calls
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "forward/batch_rows.h"
#include "support/models.h"
#include "support/random.h"

namespace harp::testing {

/// What an observer saw of an output row.
struct Seen {
    llama_pos position = 0;
    StepRecord record;
    std::vector<float> vanilla, reframed;
};

/// A call for one sequence: for any of them in company, for sequence 0 alone.
struct Call {
    std::string name;
    std::function<bool(ForwardPass &, llama_seq_id)> apply;  // false: this memory cannot do it
    std::vector<Seen> seen = {};                             // in company, of its output rows
};
using History = std::vector<std::shared_ptr<const Call>>;

/// A model and how to try it.
struct ReplayCase {
    const char * name;
    std::filesystem::path (*model)();
    ggml_type cache;
    double tolerance;  // of logits
    unsigned n_seeds;
};

class Company {
  public:
    Company(llama_model & model, const ReplayCase & of, unsigned seed);
    /// Fails the test if a sequence gets what it would not get alone.
    void run(int n_calls);
    [[nodiscard]] size_t n_compared() const { return n_compared_; }

  private:
    struct Member {
        History history;
        std::vector<llama_token> negative_prompt;
        uint32_t mask_family = 0;
        std::vector<uint8_t> partial;  // a state, and the history up to it, while only rows have followed
        History partial_history;
        bool has_moved = false;    // rows before others were removed: twins that begin anew do not read what others did
        bool begins_anew = false;  // its twins may have
    };

    /// Rows of one sequence in a batch.
    struct Part {
        llama_seq_id s = 0;
        std::vector<llama_token> tokens;
        llama_pos first = 0;
        std::vector<char> is_output;

        void add(forward::BatchRows & rows, llama_seq_id id, size_t i) const {
            rows.add(tokens[i], first + static_cast<llama_pos>(i), {&id, 1}, is_output[i] != 0);
        }
    };

    // --- company.cpp
    llama_context_params parameters();
    std::unique_ptr<ForwardPass> open(const llama_context_params & params, Schedule schedule);
    Options random_options();
    [[nodiscard]] std::vector<llama_seq_id> ids() const;
    llama_seq_id any() { return random_.below(static_cast<int>(members_.size())); }
    Member & member(llama_seq_id s) { return members_[static_cast<size_t>(s)]; }
    llama_pos next(llama_seq_id s) { return pass_->memory_seq_pos_max(s) + 1; }
    llama_token token() { return 3 + random_.below(pass_->n_vocab() - 3); }
    void say(const std::string & what) { said_ += "\n" + what; }

    /// Applies a call to a sequence, and writes it into its history if memory can do it.
    bool add(llama_seq_id s, const std::string & name, const std::function<bool(ForwardPass &, llama_seq_id)> & apply);
    void set_options(llama_seq_id s, const Options & options, uint32_t family);
    void set_negative_prompt(llama_seq_id s, const std::vector<llama_token> & tokens);
    bool remove(llama_seq_id s, llama_pos p0, llama_pos p1);

    /// Does a sequence's history again in a pass of its own, in whole batches.
    void replay(llama_seq_id s);
    /// @return false if a comparison goes no further
    bool is_same(const std::vector<Seen> & in_company, bool is_loose);

    // --- company_calls.cpp
    void any_call();
    Part any_part(llama_seq_id s);
    void decode_some();
    /// @return false if it fails. Then all is as before, but memory that cannot go back is empty.
    bool try_decode(forward::BatchRows & rows, const std::vector<Part> & parts);
    /// Removes rows in the middle, and closes the gap.
    void shift(llama_seq_id s, llama_pos end);
    void copy(llama_seq_id from, llama_seq_id to, llama_pos end);
    void save_or_load(llama_seq_id s);

    llama_model & model_;
    const ReplayCase & of_;
    Random random_;
    bool is_windowed_, is_recurrent_;
    uint32_t n_reframings_;
    bool steers_;  // with a control vector
    std::vector<Member> members_;
    llama_context_params params_;
    int throws_after_ = -1, aborts_after_ = 0;
    bool is_move_pending_ = false;                     // until the next decode
    std::vector<std::pair<llama_seq_id, Seen>> seen_;  // of the last batch, with the sequence
    std::unique_ptr<ForwardPass> pass_;
    std::vector<std::pair<std::vector<uint8_t>, Member>> saved_;
    size_t n_compared_ = 0;
    std::string said_;  // all calls, for messages
};

}  // namespace harp::testing
