// HARP off is llama.cpp, bit for bit: random calls with fixed seeds, each made to a pass with HARP off and to a context of
// llama.cpp's own. So is HARP on where no row is mixed, as long as no batch fails. HARP_REPLAY_SEEDS as in replay_test.cpp.
#include <gtest/gtest.h>

#include <cstring>
#include <optional>

#include "forward/batch_rows.h"
#include "support/models.h"
#include "support/random.h"

namespace harp::testing {
namespace {

struct LlamaCase {
    const char * name;
    std::filesystem::path (*model)();
};

/// Both contexts.
class Pair {
  public:
    Pair(llama_model & model, unsigned seed, bool is_on)
        : random_(seed),
          is_on_(is_on),
          is_windowed_(llama_model_n_swa(&model) > 0),
          is_recurrent_(llama_model_is_recurrent(&model) || llama_model_is_hybrid(&model)),
          n_(1 + random_.below(4)),
          params_(parameters()),
          pass_(model, params_, options()),
          context_(llama_init_from_model(&model, params_)),
          memory_(llama_get_memory(context_.get())) {}

    void run(int n_calls) {
        for (int i = 0; i < n_calls && !::testing::Test::HasFailure(); ++i) {
            any_call();
            for (llama_seq_id s = 0; s < n_; ++s) {
                EXPECT_EQ(pass_.memory_seq_pos_max(s), llama_memory_seq_pos_max(memory_, s)) << said_;
                EXPECT_EQ(pass_.memory_seq_pos_min(s), llama_memory_seq_pos_min(memory_, s)) << said_;
            }
        }
    }
    [[nodiscard]] size_t n_compared() const { return n_compared_; }

  private:
    llama_context_params parameters() {
        llama_context_params params =
            random_context(random_, is_windowed_ ? 640 : 96, static_cast<size_t>(n_), is_windowed_);
        params.type_k = random_.of({GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16});
        params.type_v = random_.of({GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16});
        return params;
    }
    std::optional<Options> options() {
        if (!is_on_) return std::nullopt;
        Options options;
        options.threshold = 0;
        options.beta = 1;  // hesitates always, and mixes nothing
        options.schedule = random_.of({Schedule::lazy, Schedule::automatic});
        options.scope = random_.of({Scope::all, Scope::generated});
        options.reframings = random_.of({1U, 2U});
        return options;
    }

    llama_pos next(llama_seq_id s) { return llama_memory_seq_pos_max(memory_, s) + 1; }
    void say(const std::string & what) { said_ += "\n" + what; }

    void remove(llama_seq_id s, llama_pos p0, llama_pos p1) {
        say("remove " + std::to_string(p0) + ".." + std::to_string(p1) + " of " + std::to_string(s));
        const bool done = pass_.memory_seq_rm(s, p0, p1);
        if (is_on_ && !done) return;  // HARP refuses more
        EXPECT_EQ(llama_memory_seq_rm(memory_, s, p0, p1), done) << said_;
    }

    void any_call() {
        const llama_seq_id s = random_.below(n_), other = random_.below(n_);
        const llama_pos end = next(s);
        const int what = random_.below(100);
        if (what < 60) {
            decode_some();
        } else if (what < 72) {
            const bool is_tail = is_on_ || random_.chance(80);
            const llama_pos p0 = random_.chance(30) ? -1 : std::max(0, end - random_.below(8));
            remove(s, p0, is_tail ? -1 : p0 + 3);
        } else if (what < 78) {
            if (is_on_ || is_recurrent_ || !llama_memory_can_shift(memory_) || (n_ > 1 && params_.kv_unified)) return;
            say("move " + std::to_string(s));
            const llama_pos p0 = random_.below(end + 1), by = random_.below(5) - 2;
            pass_.memory_seq_add(s, p0, -1, by);
            llama_memory_seq_add(memory_, s, p0, -1, by);
        } else if (what < 86) {
            if (s == other) return;
            remove(other, -1, -1);
            say("copy " + std::to_string(s) + " to " + std::to_string(other));
            pass_.memory_seq_cp(s, other, -1, -1);
            llama_memory_seq_cp(memory_, s, other, -1, -1);
        } else if (what < 88) {
            say("keep " + std::to_string(s));
            pass_.memory_seq_keep(s);
            if (!is_on_) llama_memory_seq_keep(memory_, s);
            for (llama_seq_id each = 0; each < n_; ++each) {  // llama.cpp keeps the others too if each has a KV stream
                if (each != s) remove(each, -1, -1);
            }
        } else if (what < 95) {
            save_or_load(s, end);
        } else if (what < 97) {
            say("steer");
            const float each = 0.1F * static_cast<float>(random_.below(3));
            const auto strength = random_.chance(70) ? std::optional(each) : std::nullopt;
            steer(*pass_.context(), strength);
            steer(*context_, strength);
        } else {
            std::vector<uint8_t> bytes(llama_state_get_size(context_.get()));
            bytes.resize(llama_state_get_data(context_.get(), bytes.data(), bytes.size()));
            const std::vector<uint8_t> own = pass_.state_get();
            EXPECT_TRUE(is_on_ || own == bytes) << said_;
            say("load all");
            pass_.state_set(own);
            EXPECT_GT(llama_state_set_data(context_.get(), bytes.data(), bytes.size()), 0U) << said_;
        }
    }

    void save_or_load(llama_seq_id s, llama_pos end) {
        if (end > 0 && (saved_.empty() || random_.chance(50))) {
            say("save " + std::to_string(s));
            std::vector<uint8_t> bytes(llama_state_seq_get_size(context_.get(), s));
            bytes.resize(llama_state_seq_get_data(context_.get(), bytes.data(), bytes.size(), s));
            saved_.emplace_back(pass_.state_seq_get(s), bytes);
            EXPECT_TRUE(is_on_ || saved_.back().first == bytes) << said_;
        } else if (!saved_.empty()) {
            say("load into " + std::to_string(s));
            const auto & [own, bytes] = saved_[static_cast<size_t>(random_.below(static_cast<int>(saved_.size())))];
            bool is_loaded = true;
            try {
                pass_.state_seq_set(own, s);
            } catch (const Error &) {  // no room
                is_loaded = false;
            }
            EXPECT_EQ(llama_state_seq_set_data(context_.get(), bytes.data(), bytes.size(), s) > 0, is_loaded) << said_;
            if (!is_loaded) remove(s, -1, -1);
        }
    }

    void decode_some() {
        forward::BatchRows rows;
        std::vector<char> is_output;
        std::string name = "decode";
        for (llama_seq_id s = 0; s < n_; ++s) {
            if (random_.chance(40)) continue;
            int n = 1 + random_.below(random_.chance(70) ? 2 : 9);
            if (next(s) == 0) n = 1 + random_.below(is_windowed_ && random_.chance(40) ? 300 : 30);
            name.append(" ").append(std::to_string(n)).append(" of ").append(std::to_string(s));
            for (int i = 0; i < n; ++i) {
                is_output.push_back(random_.chance(40) ? 1 : 0);
                const llama_token token = 3 + random_.below(pass_.n_vocab() - 3);
                rows.add(token, next(s) + i, {&s, 1}, is_output.back() != 0);
            }
        }
        if (is_output.empty() || is_output.size() > params_.n_batch) return;
        say(name);
        const auto stop = [](void * left) { return (*static_cast<int *>(left))-- == 0; };
        n_left_ = n_left_own_ = !is_on_ && random_.chance(5) ? random_.below(60) : -1;
        llama_set_abort_callback(pass_.context(), stop, &n_left_own_);
        llama_set_abort_callback(context_.get(), stop, &n_left_);
        const int32_t code = llama_decode(context_.get(), rows.view());
        bool succeeds = true;
        try {
            pass_.decode(rows.view());
        } catch (const Error & error) {
            succeeds = false;
            const ErrorCode expected = code == 1   ? ErrorCode::context_full
                                       : code == 2 ? ErrorCode::aborted
                                                   : ErrorCode::invalid_batch;
            EXPECT_TRUE(error.code() == expected || is_on_) << error.what() << said_;
        }
        if (is_on_ && (!succeeds || code != 0)) {  // only HARP takes back all of a batch
            for (llama_seq_id s = 0; s < n_; ++s) remove(s, -1, -1);
            return;
        }
        EXPECT_EQ(code == 0, succeeds) << said_;
        for (size_t i = 0; succeeds && i < is_output.size(); ++i) {
            if (is_output[i] != 0) compare(static_cast<int32_t>(i));
        }
    }

    void compare(int32_t row) {
        const float * own = pass_.logits(row);
        const float * expected = llama_get_logits_ith(context_.get(), row);
        ASSERT_TRUE(own != nullptr && expected != nullptr) << said_;
        const size_t n_bytes = static_cast<size_t>(pass_.n_vocab()) * sizeof(float);
        EXPECT_EQ(std::memcmp(own, expected, n_bytes), 0) << "row " << row << said_;
        ++n_compared_;
    }

    Random random_;
    bool is_on_, is_windowed_, is_recurrent_;
    int n_;
    llama_context_params params_;
    ForwardPass pass_;
    llama_context_ptr context_;
    llama_memory_t memory_;
    std::vector<std::pair<std::vector<uint8_t>, std::vector<uint8_t>>> saved_;
    int n_left_ = -1, n_left_own_ = -1;  // calls of the abort callbacks before they say stop
    size_t n_compared_ = 0;
    std::string said_;  // all calls, for messages
};

class Llama : public ::testing::TestWithParam<LlamaCase> {
  protected:
    static void expect_the_same_bits(bool is_on) {
        HARP_REQUIRE_MODEL(model, GetParam().model());
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);  // failures are expected here
        const auto [first, count] = seeds(8);
        size_t n_compared = 0;
        for (unsigned seed = first; seed < first + count && !HasFailure(); ++seed) {
            SCOPED_TRACE("HARP_REPLAY_SEEDS=" + std::to_string(seed) + ":1");
            Pair pair(model, seed, is_on);
            pair.run(45);
            n_compared += pair.n_compared();
        }
        EXPECT_GE(n_compared, 20 * count);
    }
};

TEST_P(Llama, HarpOffGivesTheSameBits) {
    expect_the_same_bits(/*is_on=*/false);
}

TEST_P(Llama, RowsThatAreNotMixedAreTheSameBits) {
    expect_the_same_bits(/*is_on=*/true);
}

INSTANTIATE_TEST_SUITE_P(Models, Llama,
                         ::testing::Values(LlamaCase{"Stories", stories260k}, LlamaCase{"Mixture", random_mixture},
                                           LlamaCase{"Recurrent", random_mamba}, LlamaCase{"Hybrid", random_hybrid},
                                           LlamaCase{"Windowed", random_windowed}),
                         [](const auto & param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace harp::testing
