// Random operations on Sequences, on a fake of each kind of memory: after each, clean stream and twins must hold exactly
// what a simple model says.
#include <gtest/gtest.h>

#include <array>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "forward/sequence.h"
#include "support/fake_pass.h"

namespace harp::forward {
namespace {

using testing::clean_content;
using testing::FakePass;
using testing::n_vocab;
using testing::options_with;
using testing::rows_as_text;
using testing::twin_content;
using Kind = testing::FakeMemory::Kind;

/// What the operations should leave, as a list of rows.
struct Model {
    struct Item {
        llama_token token;
        llama_pos position;
        uint32_t ordinal;
        bool operator==(const Item &) const = default;
    };
    std::vector<Item> items;

    void append(llama_token token) {
        items.push_back(
            {token, items.empty() ? 0 : items.back().position + 1, items.empty() ? 0 : items.back().ordinal + 1});
    }
    void remove(llama_pos p0, llama_pos p1) {
        std::erase_if(items, [=](const Item & i) { return i.position >= p0 && (p1 < 0 || i.position < p1); });
    }
    void add(llama_pos p0, llama_pos delta) {
        for (Item & i : items) i.position += i.position >= p0 ? delta : 0;
    }
};

struct Fuzz {
    static constexpr size_t n_sequences = 3;

    Kind kind;
    std::mt19937 random;
    FakePass pass;
    std::vector<Model> models = std::vector<Model>(n_sequences);
    struct Saved {
        std::vector<uint8_t> bytes;
        Model model;
        size_t sequence;
        bool is_partial;
    };
    std::vector<Saved> saved;
    std::string log;

    Fuzz(Kind k, uint32_t seed, const Options & options) : kind(k), random(seed), pass(k, n_sequences, options) {}

    int pick(int n) { return static_cast<int>(random() % static_cast<uint32_t>(n)); }

    void step() {
        const auto s = static_cast<size_t>(pick(n_sequences));
        Sequence & sequence = pass[s];
        Model & model = models[s];
        const llama_pos end = sequence.next_position();
        const int what = pick(14);
        log += std::to_string(what) + "(" + std::to_string(s) + ") ";
        switch (what) {
            case 0:
            case 1:
            case 2:
            case 3:
                for (int i = 0; i < 1 + pick(4); ++i) {
                    const llama_token token = pick(n_vocab);
                    model.append(token);
                    pass.decode(s, token, pick(2) == 0, pick(2) == 0);
                }
                break;
            case 4: {  // tail
                const llama_pos from = pick(end + 2);
                if (pass.remove(s, from, -1)) model.remove(from, -1);
                break;
            }
            case 5: {  // context shift
                if (end < 4 || !pass.memory.kind().can_shift) break;
                const llama_pos p0 = 1 + pick(end - 3), p1 = p0 + 1 + pick(end - p0 - 1);
                if (!pass.remove(s, p0, p1)) break;
                model.remove(p0, p1);
                sequence.add(p1, -1, p0 - p1);
                model.add(p1, p0 - p1);
                break;
            }
            case 6: {  // copy
                const auto other = static_cast<size_t>(pick(n_sequences));
                if (other == s) break;
                if (kind == Kind::unified) {
                    pass[other].clear();
                    models[other].items.clear();
                }
                pass[other].copy_from(sequence, -1, -1);
                models[other] = model;
                break;
            }
            case 7: saved.push_back({pass.save(s), model, s, false}); break;
            case 8: {
                if (saved.empty()) break;
                const Saved & one = saved[static_cast<size_t>(pick(static_cast<int>(saved.size())))];
                if (one.is_partial) break;
                pass.load(s, one.bytes);
                model = one.model;
                break;
            }
            case 9: {  // a checkpoint, and a return to it
                constexpr llama_state_seq_flags partial = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;
                if (kind != Kind::sliding_window && kind != Kind::hybrid) break;
                const auto bytes = pass.save(s, partial);
                const Model before = model;
                for (int i = 0; i < pick(9); ++i) pass.decode(s, pick(n_vocab), true, pick(2) == 0);
                pass.load(s, bytes, partial);
                model = before;
                break;
            }
            case 10: sequence.set_prompt_end(pick(end + 4)); break;
            case 11: {
                Options options = sequence.options();
                options.seed = static_cast<uint64_t>(pick(2));
                options.redraw = static_cast<uint32_t>(pick(3));
                options.scope = pick(2) == 0 ? Scope::all : Scope::generated;
                options.view = static_cast<View>(pick(4));
                options.view_tokens = static_cast<uint32_t>(1 + pick(5));
                sequence.set_options(options, static_cast<uint32_t>(pick(2)));
                sequence.set_negative_prompt(std::vector<llama_token>(static_cast<size_t>(pick(3)), pick(n_vocab)));
                break;
            }
            case 12: {  // a decode that fails in the middle
                const size_t n = sequence.size();
                sequence.share_prompt();
                for (int i = 0; i < 3; ++i) {
                    const size_t row = sequence.append(pick(n_vocab), sequence.next_position(), true);
                    if (i < 2) memory_decode(sequence.ids().clean, sequence, row);
                }
                if (sequence.n_twin() == n && n > 0) {
                    const ViewRow row = sequence.view().read(n, n + 1).back();
                    pass.memory.decode(sequence.ids().twins[0], row.position,
                                       twin_content(sequence, n, sequence.twin_draw(), 0));
                }
                sequence.take_back(n, end);
                if (sequence.size() == 0) model.items.clear();
                break;
            }
            default: sequence.clear(); model.items.clear();
        }
    }
    void memory_decode(llama_seq_id id, const Sequence & sequence, size_t row) {
        pass.memory.decode(id, sequence.rows()[row].position, clean_content(sequence.rows()[row]));
    }

    /// Checks that rows are the model's, and that clean stream and twins hold exactly these.
    void check(size_t s) {
        const Sequence & sequence = pass[s];
        SCOPED_TRACE("sequence " + std::to_string(s) + " after " + log.substr(log.size() > 200 ? log.size() - 200 : 0));
        std::vector<Model::Item> rows;
        for (const Row & row : sequence.rows()) rows.push_back({row.token, row.position, row.ordinal});
        ASSERT_TRUE(rows == models[s].items) << rows_as_text(sequence);
        ASSERT_EQ(sequence.disagreement(), "");
        Cells clean;
        for (const Row & row : sequence.rows()) clean.emplace_back(row.position, clean_content(row));
        expect_held(sequence.ids().clean, clean);
        for (size_t r = 0; r < sequence.ids().twins.size(); ++r) {
            expect_held(sequence.ids().twins[r], twin_cells(sequence, r));
        }
    }

    using Cells = std::vector<std::pair<llama_pos, std::string>>;
    /// What a twin should hold: the rows; or with guidance the negative prompt or last prompt token, then the answer.
    static Cells twin_cells(const Sequence & sequence, size_t r) {
        Cells cells;
        if (sequence.n_twin() == 0) return cells;
        const ViewOf view = sequence.view();
        size_t begin = 0;
        llama_pos moved = 0;
        if (view.options.view == View::guidance) {
            for (const llama_token token : view.negative_prompt)
                cells.emplace_back(cells.size(), std::to_string(token));
            begin = view.n_prompt - (cells.empty() && view.n_prompt > 0 ? 1 : 0);
            const llama_pos answer = view.n_prompt == 0 ? 0 : sequence.rows()[view.n_prompt - 1].position + 1;
            if (!cells.empty()) moved = static_cast<llama_pos>(cells.size()) - answer;
        }
        for (size_t i = begin; i < sequence.n_twin(); ++i) {
            cells.emplace_back(sequence.rows()[i].position + moved, twin_content(sequence, i, sequence.twin_draw(), r));
        }
        return cells;
    }
    void expect_held(llama_seq_id id, const Cells & expected) {
        std::string cells, window, state;
        const llama_pos end = expected.empty() ? 0 : expected.back().first + 1;
        for (const auto & [position, content] : expected) {
            const std::string cell = std::to_string(position) + ":" + content + " ";
            cells += cell;
            if (position > end - testing::FakeMemory::window) window += cell;
            state += content + " ";
        }
        if (kind == Kind::recurrent) {
            ASSERT_EQ(pass.memory.contents(id), state);
            return;
        }
        ASSERT_EQ(pass.memory.contents(id), cells);
        if (kind == Kind::hybrid) {
            ASSERT_EQ(pass.memory.state_contents(id), state);
        }
        if (kind == Kind::sliding_window) {  // everything that the next row attends to is there
            const std::string held = pass.memory.window_contents(id);
            ASSERT_TRUE(held.size() >= window.size() && held.substr(held.size() - window.size()) == window)
                << "holds " << held << ", wanted " << window;
        }
    }
};

std::string name_of(Kind kind) {
    constexpr std::array<const char *, 5> names = {"Unified", "Streams", "SlidingWindow", "Recurrent", "Hybrid"};
    return names[static_cast<size_t>(kind)];
}

class SequenceFuzz : public ::testing::TestWithParam<Kind> {};

TEST_P(SequenceFuzz, RandomOperationsLeaveWhatTheModelSays) {
    std::array<size_t, 4> n_twin_rows{};  // [View]
    for (uint32_t seed = 0; seed < 60; ++seed) {
        for (const uint32_t reframings : {1U, 2U}) {
            Fuzz fuzz(GetParam(), seed, options_with(seed % 2 == 0 ? Scope::all : Scope::generated, 0, reframings));
            for (int i = 0; i < 150; ++i) {
                fuzz.step();
                for (size_t s = 0; s < Fuzz::n_sequences; ++s) {
                    fuzz.check(s);
                    if (HasFatalFailure()) return;
                    n_twin_rows.at(static_cast<size_t>(fuzz.pass[s].options().view)) += fuzz.pass[s].n_twin();
                }
            }
        }
    }
    for (const View view : {View::perturbed, View::masked, View::guidance}) {
        EXPECT_GT(n_twin_rows.at(static_cast<size_t>(view)), 3000U) << "the twins were in use";
    }
}

INSTANTIATE_TEST_SUITE_P(Kinds, SequenceFuzz,
                         ::testing::Values(Kind::unified, Kind::streams, Kind::sliding_window, Kind::recurrent,
                                           Kind::hybrid),
                         [](const auto & tested) { return name_of(tested.param); });

}  // namespace
}  // namespace harp::forward
